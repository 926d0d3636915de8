"""Which shape of the kernel fits a card and a problem: variables, constraints and an objective, all written as data.

A kernel is a choice of factors (N1 .. Np), rows a thread block and warps a thread block.  `solve` enumerates the few
thousand choices, drops those that a constraint refuses, orders the rest by predicted seconds, and stops where the
bound on what is left says that nothing can win: milliseconds, exact, no solver.  `facts` says why.

Counts (MMAs, bytes) are exact.  Registers and seconds are estimates: good for an order, not for a promise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any

from .bank_swizzle import conflicts, swizzle
from .devices import Card
from .tiling import FIRST, INNER, MIDDLE, ROWS, SOURCES, STAGES, WARPS, Kind, Live, Tiling, TwoLevel, kind, type_name

OUTER = (16, 32, 48, 64)  # radices of the outer kernels of a two-level transform
WIDE = (96, 128)  # tried only where no other radix reaches
DIRECT_TAPS = 512  # a filter of more is not worth a thought as Toeplitz matrices

MMA_FLOPS = 4096  # mma.m16n8k16
POINTWISE = 10  # instructions a point and stage output: twiddle or spectrum 4, unpack and pack 3, table and address 3
LATENCY = 0.5e-6  # seconds from barrier to barrier that a block alone spends filling and draining
BUSY_WARPS = 8  # resident warps a multiprocessor needs, two a scheduler, before its pipelines fill
L2_GAIN = 2.0  # what L2 delivers over what DRAM does
LAUNCH = 2e-6  # seconds


class NothingFitsError(ValueError):
    """No kernel takes this problem, and why."""


# --- the problem, its constraints, its objective -------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """What is to be computed, and where.

    rows_total: signals, B * H.  batch: of these, neighbours that share a spectrum.  taps: of a filter cut in time, for
    the source "history".  gated: signals multiplied on the way in and on the way out.
    """

    card: Card
    seqlen: int
    dtype: str
    rows_total: int
    source: str = "real"
    taps: int | None = None
    gated: bool = False
    batch: int = 1

    def __post_init__(self) -> None:
        kind(self.dtype)
        for name in ("seqlen", "rows_total", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.source not in SOURCES:
            raise ValueError(f"no kernel reads {self.source!r}; choose from {', '.join(SOURCES)}")
        if (self.source == "history") != (self.taps is not None):
            raise ValueError("taps belong to the source 'history', and it needs them; give both or neither")
        if self.taps is not None and not 1 <= self.taps <= self.seqlen:
            raise ValueError(f"taps must lie in 1 .. seqlen = {self.seqlen}, got {self.taps}")

    @property
    def reach(self) -> int:
        """Points that a row needs at least."""
        return self.seqlen if self.taps is None else self.taps

    @property
    def kind(self) -> Kind:
        return kind(self.dtype)

    def rows(self, tiling: Tiling) -> int:
        """Rows that the signals make."""
        return self.rows_total * tiling.blocks(self.seqlen)


@dataclass(frozen=True)
class Constraint:
    """What a kernel must satisfy.

    on: the variable after which it can be judged.  holds: whether it does.  message: what is wrong, for people.
    """

    name: str
    on: str
    holds: Callable[[Problem, Tiling], bool]
    message: Callable[[Problem, Tiling], str]


def uneven(problem: Problem, tiling: Tiling) -> str:
    stage, units = next((s, n) for s, n in tiling.units.items() if n % tiling.warps)
    return f"{stage} has {units} units, which {tiling.warps} warps cannot share evenly"


CONSTRAINTS = (
    Constraint(
        "enough points", "factors",
        lambda p, t: t.points >= p.reach,
        lambda p, t: f"{t.points} points are fewer than the {p.reach} {'taps' if p.taps else 'samples'}",
    ),
    Constraint(
        "registers of a thread", "factors",
        lambda p, t: max(t.registers(p.dtype).values()) <= 255,
        lambda p, t: f"about {max(t.registers(p.dtype).values())} registers, a thread has 255",
    ),
    Constraint(
        "shared memory", "rows",
        lambda p, t: t.shared_bytes(p.dtype) <= p.card.shared_per_block,
        lambda p, t: f"{t.rows} x {t.points} points of {p.dtype} take {t.shared_bytes(p.dtype)} bytes of "
        f"shared memory, a block on {p.card.name} gets {p.card.shared_per_block}",
    ),
    Constraint(
        "whole columns", "rows",
        lambda p, t: t.rows * t.behind[0] % t.columns == 0,
        lambda p, t: f"{t.rows} x {t.behind[0]} columns are no multiple of the {t.columns} that a warp takes at once",
    ),
    Constraint(
        "rows there are", "rows",
        lambda p, t: t.rows < 2 * p.rows(t),
        lambda p, t: f"{t.rows} rows a block where there are {p.rows(t)}",
    ),
    Constraint(
        "one spectrum a block", "rows",
        lambda p, t: t.rows == 1 or t.source != "complex",
        lambda p, t: f"{t.rows} inner rows of a two-level transform have as many outer digits",
    ),
    Constraint(
        "rows at powers of two", "rows",
        lambda p, t: t.rows == 1 or t.factors[0] != 48,
        lambda p, t: f"{t.rows} rows of {t.points} words do not start where the swizzle is the same",
    ),
    Constraint("equal work", "warps", lambda p, t: not any(n % t.warps for n in t.units.values()), uneven),
    Constraint(
        "room on a multiprocessor", "warps",
        lambda p, t: t.occupancy(p.card, p.dtype) >= 1,
        lambda p, t: f"{t.warps} warps of about {max(t.registers(p.dtype).values())} registers a thread exceed the "
        f"{p.card.registers_per_multiprocessor} registers of a multiprocessor",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A kernel that fits, and what it is predicted to take.

    seconds = the longest of `terms` + exposed + launch.  terms: seconds of each resource if nothing else were in the
    way; exposed: what does not hide behind the longest: phases that follow each other in too few blocks, idle
    multiprocessors in the last wave, time from barrier to barrier.
    """

    tiling: Tiling | TwoLevel
    seconds: float
    terms: Mapping[str, float]
    exposed: float
    launch: float
    occupancy: int
    waves: float
    registers: int
    shared_bytes: int

    @property
    def order(self) -> tuple[Any, ...]:
        """Best first: less time, then more warps at once, then fewer registers."""
        inner = self.tiling.inner
        return self.seconds, -self.occupancy * inner.warps, self.registers, inner.factors, inner.rows

    def facts(self) -> dict[str, Any]:
        """As JSON holds it."""
        inner = self.tiling.inner
        return {
            **asdict(self),
            "factors": inner.factors,
            "points": self.tiling.points,
            "swizzle": swizzle(inner),
            "conflicts": max(conflicts(inner).values()),
        }


def signal_terms(problem: Problem, tiling: Tiling, live: Live | None = None) -> dict[str, float]:
    """Seconds that one signal keeps each resource of the whole card busy.  Whatever its rows and warps."""
    card, kind, blocks = problem.card, problem.kind, tiling.blocks(problem.seqlen)
    moved = tiling.global_bytes(problem.seqlen, problem.dtype, problem.gated, live)
    spectrum = moved["spectrum"] / blocks / problem.batch  # the rest of its reads L2 answers
    once = moved["written"] * (2 + 2 * problem.gated) if tiling.source != "complex" else 2 * moved["written"]
    mmas = sum(tiling.mmas(live, problem.dtype, problem.seqlen).values()) / tiling.rows * blocks
    points = tiling.points * blocks * kind.planes
    return {
        "memory": max(once + spectrum, sum(moved.values()) / L2_GAIN) / card.bandwidth,
        "matrix": mmas * MMA_FLOPS / card.matrix_rate,
        "shared": 4 * points * tiling.trips(live, problem.dtype) / card.shared_rate,
        "pointwise": POINTWISE * points * tiling.results(live, problem.dtype) / card.pointwise_rate,
    }


def block_seconds(busy: Mapping[str, float], tiling: Tiling, resident: int) -> float:
    """Seconds a multiprocessor spends on one of `resident` blocks.

    busy: seconds that a block keeps each resource of the multiprocessor.  One block alone takes its phases in turn, so
    they add up; many hide all but the longest; in between, the rest shrinks with the number of blocks.
    """
    slack = max(1.0, BUSY_WARPS / (resident * tiling.warps))  # too few warps to fill the pipelines
    longest, together = slack * max(busy.values()), slack * sum(busy.values())
    return longest + (together - longest + LATENCY * 2 * len(tiling.factors)) / resident


def predict(
    problem: Problem, tiling: Tiling, signal: Mapping[str, float] | None = None, live: Live | None = None
) -> Candidate:
    """What a kernel takes.  signal: `signal_terms`, if known."""
    signal = signal or signal_terms(problem, tiling, live)
    card, rows = problem.card, problem.rows(tiling)
    blocks = -(-rows // tiling.rows)
    resident = tiling.occupancy(card, problem.dtype)
    padded = blocks * tiling.rows / tiling.blocks(problem.seqlen)  # signals; the last block may be partly empty
    terms = {name: seconds * padded for name, seconds in signal.items()}
    busy = {name: seconds / blocks * card.multiprocessors for name, seconds in terms.items()}
    full, left = divmod(blocks, card.multiprocessors * resident)
    tail = -(-left // card.multiprocessors)  # blocks that the busiest multiprocessor still has
    seconds = full * resident * block_seconds(busy, tiling, resident)
    seconds += tail * block_seconds(busy, tiling, tail) if tail else 0.0
    return Candidate(
        tiling, seconds + LAUNCH, terms, seconds - max(terms.values()), LAUNCH, resident,
        blocks / (card.multiprocessors * resident), max(tiling.registers(problem.dtype).values()),
        tiling.shared_bytes(problem.dtype),
    )  # fmt: skip


# --- the search ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Domain:
    """The values of the variables."""

    factors: tuple[tuple[int, ...], ...]
    rows: tuple[int, ...] = ROWS
    warps: tuple[int, ...] = WARPS

    @property
    def size(self) -> int:
        return len(self.factors) * len(self.rows) * len(self.warps)


DOMAIN = Domain(tuple(f for p in STAGES for f in product(FIRST, *[MIDDLE] * (p - 2), INNER)))


@dataclass
class Search:
    """What a search found: the candidates, best first, and how many kernels each constraint refused.

    examples: what was wrong with one of these, near to fitting.  outbid: kernels that were not looked at since nothing
    of their factors can be quick enough.
    """

    candidates: list[Candidate]
    refused: Counter[str]
    examples: dict[str, str]
    outbid: int = 0


def search(
    problem: Problem,
    count: int | None = 8,
    domain: Domain = DOMAIN,
    live: Callable[[tuple[int, ...]], Live] | None = None,
) -> Search:
    """The `count` best of a domain; None looks at all, for the sake of complete counts."""
    found = Search([], Counter(), {})

    def passes(tiling: Tiling, on: str, kernels: int) -> bool:
        for constraint in CONSTRAINTS:
            if constraint.on == on and not constraint.holds(problem, tiling):
                found.refused[constraint.name] += kernels
                if on == "factors" or constraint.name not in found.examples:
                    found.examples[constraint.name] = constraint.message(problem, tiling)
                return False
        return True

    each = len(domain.rows) * len(domain.warps)
    shapes = sorted((Tiling(f, 1, 1, problem.source) for f in domain.factors), key=lambda t: t.points)
    shapes = [shape for shape in shapes if passes(shape, "factors", each)]
    costs = [signal_terms(problem, shape, live and live(shape.factors)) for shape in shapes]
    bounds = [max(cost.values()) * problem.rows_total + LAUNCH for cost in costs]
    by_bound = range(len(shapes)) if count is None else sorted(range(len(shapes)), key=bounds.__getitem__)
    for place, i in enumerate(by_bound):
        if count and len(found.candidates) >= count and bounds[i] > found.candidates[count - 1].seconds:
            found.outbid = (len(shapes) - place) * each
            break
        for rows in domain.rows:
            tiling = replace(shapes[i], rows=rows)
            if not passes(tiling, "rows", len(domain.warps)):
                continue
            choices = [replace(tiling, warps=warps) for warps in domain.warps]
            found.candidates += [predict(problem, t, costs[i]) for t in choices if passes(t, "warps", 1)]
        found.candidates.sort(key=lambda c: c.order)
        del found.candidates[count or len(found.candidates) :]
    return found


def solve(
    card: Card,
    seqlen: int,
    *,
    dtype: Any = "float16",
    rows_total: int,
    source: str = "real",
    taps: int | None = None,
    gated: bool = False,
    batch: int = 1,
    count: int = 8,
    live: Callable[[tuple[int, ...]], Live] | None = None,
) -> list[Candidate]:
    """The kernels that fit, best first, at most `count`; an empty list where none does, and `facts` says why.

    live: what a mask leaves under these factors, for a frequency-sparse convolution.  The rest is told at Problem.
    """
    problem = Problem(card, seqlen, type_name(dtype), rows_total, source, taps, gated, batch)
    return search(problem, count, live=live).candidates


def partial(card: Card, seqlen: int, taps: int, **rest: Any) -> list[Candidate]:
    """Kernels for a filter of `taps` taps, best first: a row is cut into blocks of M >= taps samples.

    rest: as for `solve`.
    """
    return solve(card, seqlen, source="history", taps=taps, **rest)


def two_level(
    card: Card,
    seqlen: int,
    *,
    dtype: Any = "float16",
    rows_total: int,
    gated: bool = False,
    batch: int = 1,
    count: int = 8,
    live: Callable[[tuple[int, ...]], tuple[int, Live]] | None = None,
) -> list[Candidate]:
    """Transforms in three kernels through a scratch buffer, best first: for signals that no block holds.

    live: what a mask leaves under factors, those of the outer stage first: digits of that stage, and tiles of a row.
    """
    problem = Problem(card, seqlen, type_name(dtype), rows_total, gated=gated, batch=batch)
    for radices in (OUTER, WIDE):
        fit = [radix for radix in radices if outer_registers(radix, problem.kind) <= 255]
        found = [candidate for radix in fit for candidate in with_radix(problem, radix, count, live)]
        if found:
            return sorted(found, key=lambda c: c.order)[:count]
    return []


def outer_registers(radix: int, sample: Kind) -> int:
    """Estimate for a thread of an outer kernel.  It computes one stage only, and reads large matrices in the loop."""
    return (8 + radix) * sample.planes + 32 + 40


def with_radix(
    problem: Problem, radix: int, count: int, live: Callable[[tuple[int, ...]], tuple[int, Live]] | None = None
) -> list[Candidate]:
    """Two-level transforms of this outer radix."""
    card, rows = problem.card, problem.rows_total
    inside = replace(
        problem, seqlen=-(-problem.seqlen // radix), rows_total=rows * radix, source="complex", gated=False
    )
    found = []
    for best in search(inside, count).candidates:
        kernel, share = best.tiling.inner, 1.0
        tiling = TwoLevel(radix, kernel)
        if live is not None:
            digits, left = live((radix, *kernel.factors))
            best, share = predict(replace(inside, rows_total=rows * digits), kernel, live=left), digits / radix
        moved = problem.kind.bytes * problem.seqlen * (1 + problem.gated) + share * tiling.scratch_bytes(problem.dtype)
        mmas = share * tiling.mmas(dtype=problem.dtype, seqlen=problem.seqlen)["outer"]
        points = share * tiling.points * problem.kind.planes
        outer = {
            "memory": moved * rows / card.bandwidth,
            "matrix": mmas * rows * MMA_FLOPS / card.matrix_rate,
            "shared": 0.0,
            "pointwise": POINTWISE * points * rows / card.pointwise_rate,
        }
        seconds = best.seconds + 2 * (max(outer.values()) + LAUNCH)  # no barriers: all but the longest hides
        terms = {name: s + 2 * outer[name] for name, s in best.terms.items()}
        found.append(
            replace(
                best, tiling=tiling, seconds=seconds, terms=terms, launch=3 * LAUNCH,
                exposed=seconds - 3 * LAUNCH - max(terms.values()),
                registers=max(best.registers, outer_registers(radix, problem.kind)),
            )
        )  # fmt: skip
    return found


def best(
    card: Card,
    seqlen: int,
    dtype: Any,
    rows_total: int,
    *,
    taps: int | None = None,
    gated: bool = False,
    batch: int = 1,
) -> Candidate:
    """The quickest way: one block a row, two levels where that does not fit, or overlapping blocks for `taps`.

    Raises NothingFitsError, with the reason, where nothing does.
    """
    shape: dict[str, Any] = {"dtype": dtype, "rows_total": rows_total, "gated": gated, "batch": batch}
    found = solve(card, seqlen, **shape, count=1) or two_level(card, seqlen, **shape, count=1)
    if taps is not None and taps < seqlen:
        found += partial(card, seqlen, taps, **shape, count=1)
    if not found:
        raise NothingFitsError(facts(card, seqlen, **shape)["advice"])
    return min(found, key=lambda c: c.order)


def longest(card: Card, dtype: Any, levels: int = 1) -> int:
    """Most samples of a signal that a card takes, in one block (levels 1) or through a scratch buffer (2)."""
    source = "real" if levels == 1 else "complex"
    fitting = search(Problem(card, 1, type_name(dtype), ROWS[-1], source), None).candidates
    radix = max(r for r in OUTER + WIDE if outer_registers(r, kind(dtype)) <= 255) if levels == 2 else 1
    return radix * max(candidate.tiling.points for candidate in fitting)


# --- saying why ----------------------------------------------------------------------------------------------------


def facts(card: Card, seqlen: int, *, count: int = 5, **shape: Any) -> dict[str, Any]:
    """The best kernels with every term, what each constraint refused, and what to do where none fits: JSON.

    shape: the keywords of `solve`.
    """
    shape["dtype"] = type_name(shape.get("dtype", "float16"))
    problem = Problem(card, seqlen, **shape)
    one = search(problem, None)
    candidates, advice = one.candidates[:count], None
    if not candidates:
        culprit = max(one.refused, key=[c.name for c in CONSTRAINTS].index)  # the one that came closest
        advice = f"no block holds {problem.reach} points: {one.examples[culprit]}"
        if problem.source == "real":
            rest = {key: value for key, value in shape.items() if key not in {"source", "taps"}}
            candidates = two_level(card, seqlen, count=count, **rest)
            reach = longest(card, shape["dtype"], levels=2)
            advice += (
                "; two levels do" if candidates else f"; two levels hold up to {reach}: cut the signal or the filter"
            )
        elif problem.source == "history":
            advice += "; take the whole filter, in two levels"
    return {
        **{field.name: getattr(problem, field.name) for field in fields(problem)},
        "card": asdict(card),
        "kernels": DOMAIN.size,
        "fitting": len(one.candidates),
        "candidates": [candidate.facts() for candidate in candidates],
        "refused": [
            {"constraint": c.name, "kernels": one.refused[c.name], "for_example": one.examples[c.name]}
            for c in CONSTRAINTS
            if one.refused[c.name]
        ],
        "advice": advice,
    }


def as_text(found: Mapping[str, Any]) -> str:
    """`facts` for people: a table of the best, and a line for each constraint."""
    card, terms = found["card"], ("memory", "matrix", "shared", "pointwise")
    lines = [
        f"{found['rows_total']} rows of {found['seqlen']} samples, {found['dtype']}, source {found['source']}, "
        f"on {card['name']} ({card['arch']}; {card['provenance']})"
    ]
    if found["candidates"]:
        heads = (*terms, "+ exposed", "+ launch")
        lines.append(
            f"{'factors':>18} rows warps {'us':>9} = max of" + "".join(f"{name:>10}" for name in heads)
            + "  blocks/SM  waves  registers  shared  conflicts"
        )  # fmt: skip
    for c in found["candidates"]:
        radix = c["tiling"].get("radix")
        inner = c["tiling"].get("inner", c["tiling"])
        name = (f"{radix} | " if radix else "") + " x ".join(map(str, c["factors"]))
        times = [*(c["terms"][t] for t in terms), c["exposed"], c["launch"]]
        lines.append(
            f"{name:>18} {inner['rows']:4} {inner['warps']:5} {c['seconds'] * 1e6:9.1f}         "
            + "".join(f"{s * 1e6:10.1f}" for s in times)
            + f"  {c['occupancy']:9} {c['waves']:6.1f} {c['registers']:10} {c['shared_bytes']:7} {c['conflicts']:10.2f}"
        )
    lines.append(f"of {found['kernels']} kernels {found['fitting']} fit one block a row")
    lines += [f"{r['kernels']:6} refused by {r['constraint']}: {r['for_example']}" for r in found["refused"]]
    return "\n".join(lines + [found["advice"]] * bool(found["advice"]))
