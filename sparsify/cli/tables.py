"""Results for people: tables of what `--json` prints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sparsify.process import as_written
from sparsify.report import figures, schema


def table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers line up on the right."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        numbers = all(str(row[i])[:1] in "0123456789+-" for row in rows if row[i] != "")
        made.add_column(column, justify="right" if numbers else "left", no_wrap=True, style=None if i else "cyan")
    for row in rows:
        made.add_row(*(as_written(str(cell), console.encoding) for cell in row))
    console.print(f"\n[bold]{title}[/bold]")
    console.print(made)


def inspected(console: Console, result: schema.Inspection) -> None:
    console.print(f"[bold]{result.source}[/bold]  {result.family}, {result.parameters:,} parameters")
    chosen = "".join(f"{name} {value:g}, " for name, value in result.options.items())
    console.print(f"context {result.context:,} tokens, {chosen}plan: {result.plan}")
    sites = [(s.name, s.channels, f"{s.taps:,}", "causal" if s.causal else "both ways", s.plan)
             for s in result.sites]  # fmt: skip
    table(console, "Long convolutions", ("site", "channels", "taps", "direction", "plan"), sites)
    split_time(console, f"{result.timed_tokens:,} tokens", result.published_time, result.time)


def split_time(console: Console, what: str, before: Sequence[schema.Part], after: Sequence[schema.Part]) -> None:
    """Where the time goes, as published and under the plan."""
    columns = ("part", "as published", "share", "this plan", "share")
    table(console, f"One forward pass of {what}, median over rounds", columns, figures.part_rows(before, after))


def analyzed(console: Console, result: schema.Analysis) -> None:
    shares = [f"{100 * share:g} %" for share in result.shares]
    by_tap = [(s.name, s.taps_line, *(f"{t:,}" for t in s.taps)) for s in result.sites]
    by_bin = [
        (s.name, s.bins_line, *(f"{b:,}" for b in s.bins), *(f"{b:.1%}" for b in s.bandwidth)) for s in result.sites
    ]
    title = f"Leading taps, of {result.length:,}, that hold a share of the energy"
    table(console, title, ("site", "energy by tap", *shares), by_tap)
    title = f"Largest bins, of {result.bins_in_all:,}, and lowest band that do"
    table(console, title, ("site", "energy by bin", *shares, *(f"band {s}" for s in shares)), by_bin)
    tails = [(s.name, s.tail_line, *(f"{b:.2%}" for b in s.tail_bandwidth)) for s in result.sites]
    title = f"Lowest band that does, once the first {result.head} taps are faded out (--split {result.head}:BAND)"
    table(console, title, ("site", "energy by bin", *shares), tails)
    console.print("[dim]bars span 60 dB along a logarithmic axis; the jump at lag 0 is what spreads a spectrum[/dim]")


def quality(console: Console, result: schema.Evaluation) -> None:
    """Dense against sparse: one row a figure, one column a model."""
    names = figures.variants(result)
    table(console, "Quality", ("", *names), figures.figure_rows(result))
    if by_position := figures.position_rows(result):
        table(console, "Perplexity by position", ("tokens", *names), by_position)
    if result.speed:
        table(console, "Speed and memory", figures.speed_columns(result.speed), figures.speed_rows(result.speed))
    console.print()
    if said := figures.headline(result):
        console.print(f"[bold]{said}.[/bold]", highlight=False)
    for sentence in result.verdict:
        console.print(f"[bold]{sentence[0].upper()}{sentence[1:]}.[/bold]")
    console.print(f"[dim]{result.convention}[/dim]")


def benched(console: Console, result: schema.ModelBench) -> None:
    rows = (result, result.convolutions, *result.sites)
    sizes = f"{result.batch} x {result.length:,} tokens"
    ways = {"published": "as published", "torch": "torch.fft", "dense": "dense"}
    times = [
        (
            r.name,
            *(figures.milliseconds(r.against(way)[0]) for way in ways),
            figures.milliseconds(r.seconds),
            r.plan,
        )
        for r in rows
    ]
    table(console, sizes, ("", *ways.values(), "this plan", "plan"), times)
    ratios = [(r.name, *(figures.faster(*r.against(way)[1:]) for way in ways)) for r in rows]
    columns = ("", *(f"against {name.removeprefix('as ')}" for name in ways.values()))
    table(console, "How many times as fast, in the same rounds, with quartiles", columns, ratios)
    split_time(console, sizes, result.parts.before, result.parts.after)
    console.print(
        "[dim]as published: filter and spectrum computed anew in every forward pass (one convolution: its spectrum); "
        "torch.fft: the best of it, spectra prepared once; dense: by this package[/dim]"
    )
    if result.linears != "float32":
        console.print(
            f"[dim]linear layers of this plan in {result.linears}; `sparsify eval ppl` measures the loss[/dim]"
        )
    taken_under(console, result.conditions)


def taken_under(console: Console, c: schema.Conditions) -> None:
    where = f"{c.hardware}, {c.threads} threads, kernels {c.kernels}, torch {c.torch}, commit {c.commit}"
    console.print(f"[dim]{where}[/dim]")


def convolved(console: Console, result: schema.ConvolutionBench) -> None:
    """The convolution alone: a table a shape."""
    for timed in result.shapes:
        batch, channels, seqlen = timed.shape
        ways = timed.ways
        baselines = list(ways[-1].faster_than)
        rows = [
            (
                way.name,
                figures.milliseconds(way.seconds),
                *(ratio(way.faster_than.get(b) if i >= j else None) for j, b in enumerate(baselines, 1)),
                figures.power(way.error),
            )
            for i, way in enumerate(ways)
        ]
        columns = ("", "a call", *(f"against {baseline}" for baseline in baselines), "error")
        table(console, f"{batch} x {channels:,} channels x {seqlen:,} samples", columns, rows)
    console.print(
        "[dim]ratios are paired, with quartiles; error: relative L2 against float64; malloc reuses memory for all[/dim]"
    )
    taken_under(console, result.conditions)


def gpu_convolved(console: Console, result: schema.GpuBench) -> None:
    """The convolution alone on a GPU: a table a case."""
    for timed in result.cases:
        rows = []
        for way in timed.ways:
            against, floor, predicted = way.faster_than, way.of_floor, way.predicted_seconds
            rows.append(
                (
                    way.name,
                    microseconds(way.seconds),
                    ratio(against.get("best torch.fft")),
                    ratio(against.get("dense")),
                    f"{floor:.0%}" if floor else "",
                    microseconds(predicted) if predicted else "",
                    figures.power(way.error),
                )
            )
        columns = ("", "us a call", "against best torch.fft", "against dense", "of the floor", "us predicted", "error")
        table(console, timed.case, columns, rows)
        for failed in timed.failed:
            console.print(f"[dim]not timed: {escape(failed.name)}, {escape(failed.reason)}[/dim]", soft_wrap=True)
    for name in result.crashed:
        console.print(f"[bold]{name} ended the process, and is left out[/bold]")
    peak = result.ceilings
    console.print(
        f"\n[dim]floor: the larger of bytes at {peak['bytes_per_second'] / 1e12:.2f} TB/s, a copy's, and for dense of "
        f"operations at {peak['flop_per_second'] / 1e12:.0f} TFLOP/s, a bfloat16 product's, both measured here; ratios "
        f"are paired, with quartiles; error: relative L2 against float64[/dim]"
    )
    taken_under(console, result.conditions)


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def tuned(console: Console, result: schema.Tuning) -> None:
    """Kernels that were chosen by the clock."""
    rows = []
    for row in result.tuned:
        choice, gain = row.choice, row.faster_than_planned
        gained = f"{gain:.2f}x" if gain else ""
        rows.append((row.case, row.plan, microseconds(choice["seconds"]), gained, kernel(choice)))
    columns = ("", "kept", "us a call", "than planned", "kernel")
    table(console, "Kernels chosen by the clock", columns, rows)
    console.print(f"kept in {result.tuned[-1].path}", soft_wrap=True)
    taken_under(console, result.conditions)


def kernel(choice: Mapping[str, Any]) -> str:
    """A tuned choice in words."""
    tiling = choice["tiling"]
    if tiling is None:
        return str(choice["how"])
    inner = tiling.get("inner", tiling)
    factors = "x".join(map(str, inner["factors"]))
    radix = f"{tiling['radix']} | " if "radix" in tiling else ""
    sizes = f"rows {inner['rows']}, warps {inner['warps']}, {choice['resident']} a multiprocessor"
    return f"{choice['how']} {radix}{factors}, {inner['source']}, {sizes}"


def ratio(found: schema.Ratio | None) -> str:
    return figures.faster(found.median, (found.low, found.high)) if found else ""


def calibrated(console: Console, result: schema.Calibration) -> None:
    measured, default = result.costs, result.defaults
    rows = [(f"a point, there and back, of {1 << int(bits):,}", f"{ns:.2f}", f"{default['point'][bits]:.2f}")
            for bits, ns in measured["point"].items()]  # fmt: skip
    names = {
        "sample": "a sample, read and stored",
        "tap": "a tap of a sample",
        "window": "a sample, to a lower rate and back",
        "fold": "a sample, folded and back",
    }
    rows += [(label, f"{measured[name]:.2f}", f"{default[name]:.2f}") for name, label in names.items()]
    table(console, f"Nanoseconds of one core, {result.processor}", ("", "measured", "default"), rows)
    console.print(f"kept in {result.path}", soft_wrap=True)


def generated(console: Console, result: schema.Generation) -> None:
    """The text alone, for the next program."""
    console.out(result.text)


def converted(console: Console, result: schema.Conversion) -> None:
    rows = [(f.name, f.plan, f"{f.density:.3f}", f"{f.leak:.1e}") for f in result.filters]
    table(console, f"Plan: {result.plan}", ("site", "kept", "density", "taps ahead / taps"), rows)
    if said := figures.multiplied(result.linears):
        console.print(f"{said}.", highlight=False)
    if result.planned:
        planned(console, result.planned)
    if result.evaluation:
        quality(console, result.evaluation)
    console.print(f"\nwrote [bold]{result.out}[/bold]; look at {result.out}/report.html, then type", soft_wrap=True)
    console.print(f"[bold]{result.next}[/bold]", soft_wrap=True)


def planned(console: Console, found: schema.Search) -> None:
    """How a plan within a budget was found, and what stands behind it."""
    title = f"Fastest within {found.budget:.3%} on {found.target}"
    table(console, title, figures.step_columns(found), figures.step_rows(found))
    console.print(f"[dim]{figures.searched(found)}[/dim]")


def fronts(console: Console, found: schema.ParetoComparison) -> None:
    """One mask for every convolution against plans by sensitivity, at the same cost."""
    table(console, f"At the same cost on {found.target}", figures.front_columns(found), figures.front_rows(found))
    if found.not_cheaper:
        console.print(f"[dim]no cheaper than dense there: {', '.join(found.not_cheaper)}[/dim]")
    cut = ", negative lags cut; the leak is that of the plan as it is" if figures.may_leak(found) else ""
    console.print(
        f"[dim]found on {found.calibration_windows} windows of {found.context:,} tokens, measured on "
        f"{found.held_out_windows} others{cut}[/dim]"
    )
    taken_under(console, found.conditions)


def checked(console: Console, result: schema.Health) -> None:
    rows = [("yes" if c.ok else "no", c.name, c.detail) for c in result.checks]
    table(console, "sparsify doctor", ("ok", "what", "found"), rows)


def glue(console: Console, result: schema.Glue) -> None:
    """A row a metric of a task; differences are of the same examples."""
    names = list(result.figures[0].values)
    paired = ("difference, paired", "95 % interval", "p", "test") if len(names) > 1 else ()
    rows = []
    for f in result.figures:
        row = [f.task, f.split, f.metric, f"{f.n:,}", *(figures.number(f.values[n]) for n in names)]
        if f.interval and f.difference is not None and f.p_value is not None:
            low, high = f.interval
            interval = f"{100 * low:+.2f} to {100 * high:+.2f}"
            row += [f"{100 * f.difference:+.2f} points", interval, f"{f.p_value:.2g}", f.test or ""]
        rows.append(row)
    table(console, "GLUE", ("task", "split", "metric", "examples", *names, *paired), rows)
    console.print()
    for average in (result.average, result.m2_bert_average):
        if average:
            values = ", ".join(f"{name} {value:.4f}" for name, value in average.values.items())
            console.print(f"{values}: {average.convention}", soft_wrap=True)
    for scored in result.scored:
        if scored.cut:
            console.print(f"{scored.cut:,} texts of {scored.task} {scored.split} were too long and cut")
    for sentence in (*result.missing, *result.verdict):
        console.print(f"[bold]{escape(sentence[0].upper() + sentence[1:])}.[/bold]", soft_wrap=True)
    console.print(f"[dim]{result.convention}[/dim]", soft_wrap=True)


def by_variant(
    console: Console, title: str, names: Sequence[str], rows: Mapping[str, Sequence[str]], convention: str
) -> None:
    """A row a figure, a column a variant; figures that no variant has are left out.  rows: with dense for the first."""
    labelled = [(figures.against(label, names), *cells) for label, cells in rows.items() if any(cells)]
    table(console, title, ("", *names), labelled)
    console.print(f"\n[dim]{convention}[/dim]", soft_wrap=True)


def filled_in(console: Console, result: schema.MaskedTokens) -> None:
    cells: dict[str, Callable[[schema.FilledIn], str]] = {
        "pseudo-perplexity": lambda r: figures.spread(r.pseudo_perplexity, r.pseudo_perplexity_stderr),
        "against dense, paired": lambda r: figures.ratio(r.pseudo_perplexity_ratio, r.pseudo_perplexity_ratio_stderr),
        "masked tokens guessed": lambda r: f"{r.accuracy:.2%}",
        "KL from dense, nats": lambda r: figures.power(r.kl, 2),
        "top-1 agreement": lambda r: "" if r.top1_agreement is None else f"{r.top1_agreement:.2%}",
    }
    rows = {label: [cell(row) for row in result.variants] for label, cell in cells.items()}
    by_variant(console, "Masked tokens", [row.name for row in result.variants], rows, result.convention)


def retrieved(console: Console, result: schema.Retrieval) -> None:
    cells: dict[str, Callable[[schema.Retrieved], str]] = {
        "MRR": lambda r: figures.number(r.mrr),
        "against dense, paired": lambda r: figures.spread(r.mrr_difference, r.mrr_difference_stderr),
        "cosine to dense, mean": lambda r: figures.number(r.cosine, 6),
        "cosine to dense, worst": lambda r: figures.number(r.cosine_worst, 6),
        "rank agreement (Spearman)": lambda r: figures.number(r.rank_agreement, 6),
        "top 10 in common": lambda r: "" if r.top_overlap is None else f"{r.top_overlap:.2%}",
    }
    rows = {label: [cell(row) for row in result.variants] for label, cell in cells.items()}
    by_variant(console, "Embeddings", [row.name for row in result.variants], rows, result.convention)


def fine_tuned(console: Console, result: schema.Finetuning) -> None:
    rows = [
        (f"{e.step:,}" + (" (kept)" if e == result.best else ""), f"{e.loss:.4f}", f"{e.value:.4f}")
        for e in result.evaluations
    ]
    title = f"{result.task}: {result.n:,} examples, {result.steps:,} of {result.planned_steps:,} steps"
    table(console, title, ("after step", "training loss", f"dev {result.metric}"), rows)
    if result.resumed_at:
        console.print(f"went on from step {result.resumed_at:,} of an interrupted run")
    console.print(f"\nwrote [bold]{result.out}[/bold], under the plan {result.plan}; to score it, type", soft_wrap=True)
    console.print(f"[bold]{result.next}[/bold]", soft_wrap=True)
    console.print(
        f"[dim]seed {result.seed}; {result.convention}; the dev set chose which weights were kept[/dim]",
        soft_wrap=True,
    )
