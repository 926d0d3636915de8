"""Results for people: tables and sparklines from the dictionaries that `--json` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from . import figures

BARS = "▁▂▃▄▅▆▇█"
FLOOR_DB = -60.0  # what a sparkline shows as its lowest bar


def sparkline(energy: Tensor, width: int = 24) -> str:
    """Energy along a logarithmic axis, loudest entry of each cell, from -60 dB to 0 dB.  energy: (T,) -> text."""
    edges = torch.logspace(0, torch.log10(torch.tensor(len(energy) + 1.0)), width + 1).long() - 1
    peak = energy.max().clamp_min(torch.finfo(energy.dtype).tiny)
    cells = []
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        loudest = (energy[start : max(stop, start + 1)].max() / peak).clamp_min(1e-30)
        level = 1 - 10 * float(loudest.log10()) / FLOOR_DB
        cells.append(BARS[max(0, min(len(BARS) - 1, int(level * len(BARS))))])
    return "".join(cells)


def table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers line up on the right."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(columns):
        numbers = any(str(row[i])[:1] in "0123456789+-" for row in rows if row[i] != "")
        made.add_column(column, justify="right" if numbers else "left", no_wrap=True, style=None if i else "cyan")
    for row in rows:
        made.add_row(*map(str, row))
    console.print(f"\n[bold]{title}[/bold]")
    console.print(made)


def inspected(console: Console, result: Mapping[str, Any]) -> None:
    console.print(f"[bold]{result['source']}[/bold]  {result['family']}, {result['parameters']:,} parameters")
    console.print(
        f"context {result['context']:,} tokens, filters with shift {result['shift']:g}, plan: {result['plan']}"
    )
    sites = [(s["name"], s["channels"], f"{s['taps']:,}", "causal" if s["causal"] else "both ways", s["plan"])
             for s in result["sites"]]  # fmt: skip
    table(console, "Long convolutions", ("site", "channels", "taps", "direction", "plan"), sites)
    if result["time"]:
        parts = [(p["name"], f"{1e3 * p['seconds']:.2f} ms", f"{p['share']:.0%}") for p in result["time"]]
        table(console, f"One forward pass of {result['timed_tokens']:,} tokens", ("part", "time", "share"), parts)


def analyzed(console: Console, result: Mapping[str, Any]) -> None:
    shares = [f"{100 * share:g} %" for share in result["shares"]]
    by_tap = [(s["name"], s["taps_line"], *(f"{t:,}" for t in s["taps"])) for s in result["sites"]]
    by_bin = [
        (s["name"], s["bins_line"], *(f"{b:,}" for b in s["bins"]), *(f"{b:.1%}" for b in s["bandwidth"]))
        for s in result["sites"]
    ]
    title = f"Leading taps, of {result['length']:,}, that hold a share of the energy"
    table(console, title, ("site", "energy by tap", *shares), by_tap)
    title = f"Largest bins, of {result['bins_in_all']:,}, and lowest band that do"
    table(console, title, ("site", "energy by bin", *shares, *(f"band {s}" for s in shares)), by_bin)
    tails = [(s["name"], s["tail_line"], *(f"{b:.2%}" for b in s["tail_bandwidth"])) for s in result["sites"]]
    title = f"Lowest band that does, once the first {result['head']} taps are faded out (--split {result['head']}:BAND)"
    table(console, title, ("site", "energy by bin", *shares), tails)
    console.print("[dim]bars span 60 dB along a logarithmic axis; the jump at lag 0 is what spreads a spectrum[/dim]")


def quality(console: Console, result: Mapping[str, Any]) -> None:
    """Dense against sparse: one row a figure, one column a model."""
    names = figures.variants(result)
    table(console, "Quality and speed", ("", *names), figures.figure_rows(result))
    table(console, "Perplexity by position", ("tokens", *names), figures.position_rows(result))
    console.print()
    for sentence in result["verdict"]:
        console.print(f"[bold]{sentence[0].upper()}{sentence[1:]}.[/bold]")
    console.print(f"[dim]{result['convention']}[/dim]")


def benched(console: Console, result: Mapping[str, Any]) -> None:
    rows = [
        (r["name"], f"{1e3 * r['upstream_seconds']:.3f} ms", f"{1e3 * r['dense_seconds']:.3f} ms",
         f"{1e3 * r['seconds']:.3f} ms", f"{r['speedup']:.2f}x ({r['speedup_quartiles'][0]:.2f} - "
         f"{r['speedup_quartiles'][1]:.2f})", r["plan"])
        for r in (*result["sites"], result)
    ]  # fmt: skip
    title = f"{result['batch']} x {result['length']:,} tokens; speedup is paired, dense / sparse, with quartiles"
    table(console, title, ("", "as upstream", "dense", "this plan", "speedup", "plan"), rows)
    console.print(
        "[dim]as upstream: filter and spectrum computed anew in every forward pass; dense: prepared once[/dim]"
    )
    c = result["conditions"]
    console.print(f"[dim]{c['hardware']}, {c['threads']} threads, torch {c['torch']}, commit {c['commit']}[/dim]")


def converted(console: Console, result: Mapping[str, Any]) -> None:
    rows = [(f["name"], f["plan"], f"{f['density']:.3f}", f"{f['leak']:.1e}") for f in result["filters"]]
    table(console, f"Plan: {result['plan']}", ("site", "kept", "density", "taps ahead / taps"), rows)
    if result["evaluation"]:
        quality(console, result["evaluation"])
    console.print(
        f"\nwrote [bold]{result['out']}[/bold]; look at {result['out']}/report.html, then type", soft_wrap=True
    )
    console.print(f"[bold]{result['next']}[/bold]", soft_wrap=True)


def checked(console: Console, result: Mapping[str, Any]) -> None:
    rows = [("yes" if c["ok"] else "no", c["name"], c["detail"]) for c in result["checks"]]
    table(console, "sparsify doctor", ("ok", "what", "found"), rows)
