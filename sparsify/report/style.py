"""How a report looks, by day, by night, on paper and on a phone."""

CSS = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1c1b19;--soft:#605d57;--rule:#e3e0d9;
--kept:#2563c9;--tail:#bd5208;--green:#17713f;--amber:#8a5a00;--red:#b3261e}
@media screen and (prefers-color-scheme:dark){:root{--page:#151412;--card:#1e1d1a;--ink:#eeece6;--soft:#aaa69d;
--rule:#37352f;--kept:#79aaff;--tail:#f39a54;--green:#5fcf91;--amber:#e6b450;--red:#ff8379}}
*{box-sizing:border-box}
body{margin:0 auto;padding:clamp(1rem,4vw,3rem);max-width:72rem;background:var(--page);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif;overflow-wrap:break-word;-webkit-text-size-adjust:100%;print-color-adjust:exact}
h1{font-size:1.05rem;font-weight:600;margin:0 0 1rem}h1 i{font-style:normal;color:var(--soft);padding:0 .3em}
h2{font-size:1.2rem;margin:3rem 0 .75rem}h3{font-size:1rem;margin:0}p{margin:.25rem 0;max-width:46rem}
.soft,figcaption,dt,th,.axis{color:var(--soft);font-weight:400}.soft,figcaption,footer,.axis{font-size:.85rem}
.verdict{border-left:.4rem solid var(--tone);padding:.1rem 0 .1rem 1.1rem}
.verdict strong{color:var(--tone);font-size:.85rem}
.verdict .first{font-size:clamp(1.25rem,3vw,1.75rem);line-height:1.25;font-weight:600;letter-spacing:-.01em;
max-width:54rem;text-wrap:balance;margin-bottom:.4rem}
.verdict p::first-letter,section>.soft::first-letter{text-transform:uppercase}
.green{--tone:var(--green)}.amber{--tone:var(--amber)}.red{--tone:var(--red)}
dl{margin:0}dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,9.5rem),1fr));gap:1rem;margin-top:1.75rem}
.tiles div{max-width:20rem}
.tiles div,article,pre{background:var(--card);border:1px solid var(--rule);border-radius:.6rem;padding:.8rem 1rem}
.tiles dd{font-size:1.6rem;line-height:1.3;font-weight:600}.tiles dd+dd{font-size:.85rem;font-weight:400;
color:var(--soft)}
table{border-collapse:collapse;width:100%;max-width:46rem;font-size:clamp(.875rem,2.5vw,1rem);
font-variant-numeric:tabular-nums}
th,td{padding:.4rem 0 .4rem clamp(.4rem,2vw,1rem);
border-top:1px solid var(--rule);text-align:right;vertical-align:baseline}
thead th{border:0;font-size:.85rem}tr>:first-child{padding-left:0;width:38%}
.plan tr>:first-child,.steps tr>:first-child{width:auto}tr>:first-child,.plan tr>:nth-child(2){text-align:left}
.plan table,.steps table{max-width:none}
:is(td,dd,code,.first) span{white-space:nowrap}
.sites{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,31rem),1fr));gap:1rem;margin-top:1rem}
summary{cursor:pointer;margin-top:.75rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13.5rem),1fr));gap:.5rem 1rem}
.positions{grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 3rem;align-items:start}
.positions figure{max-width:30rem}
figure{margin:.6rem 0 0;display:flex;flex-direction:column}
figcaption b{display:block;color:var(--ink);font-weight:500}
figcaption span{display:inline-block;margin-right:.8em}
figcaption i{display:inline-block;width:.7em;height:.7em;border-radius:2px;margin-right:.35em;background:var(--hue)}
figcaption .stroke{height:2px;width:1.2em;vertical-align:.25em}i.gone{opacity:.4}
.chart{padding:.6rem .8rem 1.6rem 0;margin-top:auto}.axis{text-align:right;padding-right:.8rem;max-width:none}
svg{display:block;width:100%;overflow:visible}figcaption+svg{margin-top:.5rem}figcaption+table{margin-top:.4rem}
text{font:12px system-ui,sans-serif;fill:var(--soft)}.on{paint-order:stroke;stroke:var(--ground);stroke-width:4px;
stroke-linejoin:round}.pareto .on{fill:var(--ink)}
body{--ground:var(--page)}article{--ground:var(--card)}
.chart :is(path,line){vector-effect:non-scaling-stroke}
.grid{stroke:var(--rule);fill:none}.cut,.budget{stroke:var(--soft);stroke-dasharray:3 3}.budget{stroke:var(--ink)}
.beads{stroke:var(--hue);stroke-width:4;stroke-linecap:round}
.even{fill:var(--soft);opacity:.09}
.line{fill:none;stroke:var(--hue);stroke-width:1.5;stroke-linejoin:round}.area{fill:var(--hue);opacity:.3}
.kept{--hue:var(--kept)}.tail{--hue:var(--tail)}.whole{--hue:var(--soft)}
.gone .line{opacity:.6}.gone .area{opacity:.1}
.bar{fill:var(--hue);opacity:.75}.dot{fill:var(--hue)}.ring{fill:none;stroke:var(--hue);stroke-width:1.5}
.wide{overflow-x:auto}.plan td:nth-child(2){min-width:9rem}
.map{max-width:none;table-layout:fixed;font-size:.85rem;line-height:1.2}.map :is(th,td){padding:1px 0 1px .9rem;
border:0;vertical-align:middle}.map tr>:first-child{padding-left:0;width:auto}
.map tr>:last-child{width:3.9rem;padding-left:.5rem}.map thead th{text-align:left;
vertical-align:bottom;padding-bottom:.3rem}.map thead th:last-child{text-align:right}
.map rect{fill:var(--hue);shape-rendering:crispEdges}.map .cut{
vector-effect:non-scaling-stroke;stroke-dasharray:none;opacity:.5}
footer dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr));gap:.5rem 1.5rem}
footer dl{margin-top:1rem}footer p{max-width:none;color:var(--soft)}
pre{white-space:pre-wrap;user-select:all;margin:0;font-size:.9rem}
@media print{:root{--page:#fff}.wide{overflow:visible}body{padding:0;font-size:10pt}
h2{margin-top:1.5rem}h2,.soft{break-after:avoid}
.sites{grid-template-columns:1fr}article,figure,tr,p,.tiles{break-inside:avoid}}
"""
