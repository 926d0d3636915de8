"""The page is one sound file, says what the dictionary says, and draws what is kept where it is kept."""

import copy
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from reports import PLANS, converted, page, planned, row, rows

from sparsify.plan import FilterPlan
from sparsify.report.curves import curves
from sparsify.report.figures import COUNTED_UNIT, gain_unit
from sparsify.report.filters import OPEN, short
from sparsify.report.page import tone
from sparsify.report.schema import COUNTED, LEAK_LIMIT, Conversion

VOID = {"meta", "wbr"}


class Page(HTMLParser):
    """Refuses tags that do not close in order; collects attributes, table cells and all text outside <style>."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells, self.text = [], [], [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What `sparsify convert` says of a tiny model under a split plan."""
    return converted(tmp_path_factory.mktemp("report"))


@pytest.fixture
def result(tiny):
    """The same, fresh."""
    return copy.deepcopy(tiny)


@pytest.fixture
def promised(result):
    """The same, as if its plan had been found within a budget."""
    return result | {"planned": planned(result["filters"])}


def only_dense(result):
    result["evaluation"] |= result["evaluation"]["dense"] | {"dense": None, "verdict": []}


CHANGES = {
    "as it is": lambda r: None,
    "without evaluation": lambda r: r.update(evaluation=None),
    "without curves": lambda r: [f.pop("curves") for f in r["filters"]],
    "nothing replaced": only_dense,
    "one sample": lambda r: r["evaluation"].update(perplexity_stderr=None, perplexity_ratio_stderr=None),
    "not causal": lambda r: r["evaluation"].update(
        leak=None, perplexity_cut=None, perplexity_cut_ratio=None, verdict=[]
    ),
    "never timed": lambda r: r["evaluation"].update(speed=None, parts=None),
    "within a budget": lambda r: r.update(planned=planned(r["filters"])),
    "within a budget, counted": lambda r: r.update(planned=planned(r["filters"], target=COUNTED, bound=None)),
    "within a budget, of which more is told": lambda r: r.update(planned=planned(r["filters"], seconds=7.0)),
    "within a budget, never measured again": lambda r: r.update(planned=planned(r["filters"]), evaluation=None),
    "before there were budgets": lambda r: r.pop("planned"),
    "many sites": lambda r: r.update(filters=rows(40), planned=planned(rows(40))),
    "curves of old": lambda r: [f["curves"].pop(key) for f in r["filters"] for key in ("cells", "kept_share")],
    "before there were parts": lambda r: r["evaluation"].pop("parts"),
    "before there was the published code": lambda r: r["evaluation"].pop("speed"),
    "where nobody tells the memory": lambda r: [c.update(peak_bytes=None) for c in r["evaluation"]["speed"]["columns"]],
    "the same everywhere": lambda r: [
        b.update(perplexity=4.0)
        for row in (r["evaluation"], r["evaluation"]["dense"])
        for b in row["perplexity_by_position"]
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_page_is_one_sound_file(result, change):
    CHANGES[change](result)
    html = page(result)
    made = Page(html)
    assert made.text and not {"script", "link", "img", "iframe"} & set(made.tags)
    assert not {"src", "href"} & {name for name, _ in made.attributes}
    assert "://" not in html and "url(" not in html and "@import" not in html
    assert "None" not in made.text and "nan" not in made.text.split()
    assert ("svg" in made.tags) == (change != "without curves" or result["evaluation"] is not None)


def test_an_unbalanced_page_is_seen(result):
    with pytest.raises((AssertionError, IndexError)):
        Page(page(result).replace("</figure>", "", 1))


def test_text_is_escaped(result):
    evil = "<b>&\"'</b>"
    result |= {"source": evil, "out": evil, "next": evil, "plan": evil}
    result["filters"][0] |= {"name": evil, "plan": evil}
    result["evaluation"]["verdict"] = [evil]
    result["evaluation"]["convention"] = result["evaluation"]["conditions"]["hardware"] = evil
    html = page(result)
    assert "<b>&" not in html and Page(html).text.count(evil) >= 9


def test_every_figure_stands_in_the_tables(result):
    sparse = result["evaluation"]
    dense, cells = sparse["dense"], Page(page(result)).cells
    expected = [
        *(f"{row[key]:.4f} ± {row[f'{key}_stderr']:.4f}" for row in (dense, sparse) for key in ["perplexity"]),
        f"{sparse['perplexity_cut']:.4f} ± {sparse['perplexity_cut_stderr']:.4f}",
        *(
            f"{100 * (sparse[key] - 1):+.3f} % ± {100 * sparse[f'{key}_stderr']:.3f} %"
            for key in ("perplexity_ratio", "perplexity_cut_ratio")
        ),
        *(f"{row['bits_per_token']:.4f}" for row in (dense, sparse)),
        *(f"{row['leak']:.1e}" for row in (dense, sparse, *result["filters"])),
        f"{sparse['kl']:.2e}",
        f"{sparse['top1_agreement']:.2%}",
        *(
            "{:.2f}x ({:.2f} - {:.2f})".format(c["speedup"], *c["speedup_quartiles"])
            for c in sparse["speed"]["columns"]
        ),
        *(f"{c['tokens_per_second']:,.0f}" for c in sparse["speed"]["columns"]),
        *(f"{b['perplexity']:.4f}" for row in (dense, sparse) for b in row["perplexity_by_position"]),
        *(f[key] for f in result["filters"] for key in ("name", "plan")),
        *(f"{f['density']:.3f}" for f in result["filters"]),
    ]
    assert not set(expected) - set(cells)
    sparse["kl"] += 1
    assert set(expected) - set(Page(page(result)).cells)


def test_verdict_conditions_and_next_command_are_said(result):
    text = Page(page(result)).text
    evaluation = result["evaluation"]
    said = [*evaluation["verdict"], evaluation["convention"], *evaluation["conditions"].values(), result["next"]]
    assert [line for line in said if line is not None and str(line) not in text] == []


@pytest.mark.parametrize(
    ("leak", "stderr", "colour"),
    [(0.0, 0.1, "green"), (LEAK_LIMIT, 0.1, "green"), (1.1 * LEAK_LIMIT, 0.1, "red"), (math.inf, None, "red"),
     (None, 0.1, "green"), (0.0, None, "amber")],
)  # fmt: skip
def test_tone_says_whether_the_figure_can_be_trusted(result, leak, stderr, colour):
    result["evaluation"] |= {"leak": leak, "perplexity_stderr": stderr}
    assert tone(Conversion.from_dict(result).evaluation)[0] == colour
    assert f'class="verdict {colour}"' in page(result)


def test_units_of_gains():
    assert gain_unit(COUNTED) == COUNTED_UNIT and "faster" in gain_unit("cpu (some)")
    assert tone(None) == ("amber", "not measured")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"perplexity_cut_ratio": 1.0006, "perplexity_cut_ratio_stderr": 3e-4}, "within the budget"),
        ({"perplexity_cut_ratio": 1.0008, "perplexity_cut_ratio_stderr": 3e-4}, "measured outside the budget"),
        ({"perplexity_cut_ratio": None, "perplexity_ratio": 1.1}, "measured outside the budget"),
        ({"leak": 1.0}, "cannot be trusted"),
    ],
)
def test_tone_says_whether_the_budget_is_kept(promised, change, word):
    promised["evaluation"] |= {"perplexity_stderr": 0.1, "leak": 0.0, **change}
    found = Conversion.from_dict(promised)
    assert tone(found.evaluation, found.planned)[1] == word
    assert f"<strong>{word}</strong>" in page(promised)


def test_a_promise_is_said_first(promised):
    text = Page(page(promised)).text
    first = "5.90x faster convolutions on H100, predicted, at +0.060 % ± 0.035 % perplexity on held-out windows; "
    assert first + "the budget is 0.1 %, the worst leak 5.0e-04" in text
    assert text.index(first) < text.index("Speed against loss") < text.index(promised["evaluation"]["convention"])


def test_every_step_of_a_search_stands_in_a_table(promised):
    cells = Page(page(promised)).cells
    found = promised["planned"]
    expected = [f"{100 * step['increase']:+.3f} % ± {100 * step['stderr']:.3f} %" for step in found["steps"]]
    expected += [f"{site['dense_cost'] / site['cost']:.2f}x" for site in found["sites"]]
    expected += [f"{100 * math.expm1(site['loss']):+.3f} %" for site in found["sites"]] + ["6 (chosen)", "5.90x"]
    assert not set(expected) - set(cells)


# --- the map -------------------------------------------------------------------------------------------------------


def painted(html):
    """Row by row of the map, its share and strips; a strip is None where nothing is cut, else colour -> area."""
    found = []
    for line in re.findall(r"<tr title=.*?</tr>", html):
        share = float(re.search(r"<td>([\d.]+)%</td></tr>", line)[1]) / 100
        strips = []
        for count, body in re.findall(r'<svg role="img" viewBox="0 0 (\d+) 1".*?</title>(.*?)</svg>', line):
            tiles = re.findall(r'<rect class="(\w+)" x="\d+" (?:y="[\d.e-]+" )?width="(\d+)" height="([\d.e-]+)"', body)
            areas = dict.fromkeys((kind for kind, *_ in tiles), 0.0)
            for kind, width, height in tiles:
                areas[kind] += int(width) * float(height) / int(count)
            strips.append(areas if "<rect" in body else None)
        found.append((share, strips))
    return found


def test_painted_area_of_the_map_is_what_is_kept(result):
    result["filters"] = rows(10)
    found = painted(page(result))
    assert len(found) == 10
    for (share, strips), site in zip(found, result["filters"], strict=True):
        assert share == pytest.approx(site["density"], abs=1e-3)
        area = sum(size for strip in strips if strip for kind, size in strip.items() if kind != "whole")
        assert area == pytest.approx(site["density"], abs=1e-2)
    kinds = [[strip and set(strip) - {"whole"} for strip in strips] for _, strips in found[:5]]
    assert kinds == [[{"kept"}, {"tail"}], [{"kept"}, None], [None, {"kept"}], [None, {"kept"}], [{"kept"}, None]]


def test_a_wrong_map_is_seen(result):
    result["filters"] = rows(1)
    result["filters"][0]["curves"]["cells"]["bins"].reverse()
    reversed_band = page(result)
    result["filters"] = rows(1)
    assert painted(page(result)) == painted(reversed_band) and page(result) != reversed_band
    result["filters"][0]["curves"]["cells"]["bins"][-1][0] = 1.0
    assert painted(page(result)) != painted(reversed_band)


@pytest.mark.parametrize("count", [OPEN, OPEN + 1])
def test_many_filters_fold(result, count):
    result["filters"] = rows(count)
    made = Page(page(result))
    assert ("details" in made.tags) == (count > OPEN)
    assert made.tags.count("article") == count


@pytest.mark.parametrize(
    ("names", "shortened"),
    [
        (["backbone.layers.0.mixer", "backbone.layers.1.mixer"], ["layers.0", "layers.1"]),
        (["a.0.x.f", "a.0.y.f", "a.1.x.f"], ["a.0.x", "a.0.y", "a.1.x"]),
        (["one.filter"], ["one.filter"]),
        (["l.1", "l.1.filter"], ["1", "1.filter"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_short_names_differ_still(names, shortened):
    assert short(names) == shortened


# --- pictures ------------------------------------------------------------------------------------------------------


def stretches(html):
    """Class, first and last x of every piece of curve, panel by panel, without charts of anything else."""
    pieces = (
        r'<g class="([\w ]+)"><path class="area" d="M([\d.]+),[^"]*"/><path class="line" d="M[^"]* ([\d.]+),[\d.]+"/>'
    )
    panels = [panel for panel in re.findall(r"<svg.*?</svg>", html) if 'class="area"' in panel]
    return [[(kind, float(a), float(b)) for kind, a, b in re.findall(pieces, panel)] for panel in panels]


@pytest.mark.parametrize(
    ("kind", "by_tap", "by_bin"),
    [
        ("split", ["kept", "tail"], ["tail", "tail gone"]),
        ("partial", ["kept", "kept gone"], ["kept"]),
        ("frequency-sparse", ["kept"], ["kept", "kept gone"]),
        ("dense", ["kept"], ["kept"]),
    ],
)
def test_what_is_dropped_is_faded(result, kind, by_tap, by_bin):
    result["filters"] = [row("layers.0", PLANS[kind])]
    result["evaluation"] = None
    html = page(result)
    taps, bins = stretches(html)
    assert ([p[0] for p in taps], [p[0] for p in bins]) == (by_tap, by_bin)
    for panel in (taps, bins):
        assert (panel[0][1], panel[-1][2]) == (0, 100)  # the whole width
        assert all(a[2] == b[1] for a, b in pairwise(panel))  # without a gap
    if len(by_tap) == 2:  # 8 of 64 taps is half of a logarithmic axis
        assert taps[0][2] == 50
    assert (html.split("</figcaption>")[-1].count('class="line"') == 3) == (kind == "split")  # the whole spectrum, too


def test_a_comb_alternates(result):
    row = result["filters"][0]
    row["curves"] |= {"kept_band": [[0, 0.25], [0.5, 0.75]], "tail": None, "kept_taps": None}
    bins = stretches(page(result))[1]
    assert [p[0] for p in bins] == ["kept", "kept gone"] * 2


def test_a_fine_comb_is_said_to_be_one(result):
    result["filters"][0]["curves"] |= {"kept_band": [[0, 1]], "kept_share": 0.25, "tail": None, "kept_taps": None}
    assert "kept: 0.25 of the band, in fine teeth" in Page(page(result)).text


def test_a_filter_of_one_tap_is_drawn(result):
    result["filters"][0]["curves"] = curves(torch.ones(2, 1), FilterPlan("dense"), 1).to_dict()
    Page(page(result))


def test_time_is_drawn_to_one_scale(result):
    """Two bars a part, before above after, as long as they took; a part that is gone has one."""
    parts = [("linear", 0.3, 0.15), ("filters <made> anew", 0.1, None), ("norms", 1e-9, 0.06)]
    before = [{"name": name, "seconds": then, "share": then / 0.4} for name, then, _ in parts]
    after = [{"name": name, "seconds": now, "share": now / 0.21} for name, _, now in parts if now]
    result["evaluation"]["parts"] = {"batch": 1, "length": 64, "before": before, "after": after}
    html = page(result)
    bars = re.findall(r'<g class="(\w+)"><rect class="bar" y="(\d+)" width="([\d.]+)%"', html)
    kinds, heights, widths = zip(*bars, strict=True)
    assert kinds == ("whole", "kept", "whole", "whole", "kept")
    assert list(heights) == sorted(heights, key=int) and len(set(heights)) == 5
    longest = float(widths[0])
    assert [float(width) / longest for width in widths[:3]] == pytest.approx([1, 0.5, 1 / 3], rel=1e-2)
    assert 0 < float(widths[3]) < 1 and float(widths[4]) / longest == pytest.approx(
        0.2, rel=1e-2
    )  # seen, however short
    made = Page(html)
    assert {"300 ms", "75%", "150 ms", "71%", "400 ms", "210 ms", "filters <made> anew", "together"} <= set(made.cells)
    assert "Where the time goes, before and after" in made.text
