"""From a filter to what is kept of it.  `POLICIES` names them all.

Causal models get plans that do not read the future, or do so within a bound; a low-pass alone must be asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sparsify.filters.filter import AnyFilter
from sparsify.filters.monarch import BlockMask, check_share
from sparsify.filters.spectra import energy_by_bin, energy_by_tap, first_holding, rising
from sparsify.filters.split import tail_of
from sparsify.sites import ConvSite

from .plan import FilterPlan, Plan

HEAD = 64  # taps of a split's head where nobody says otherwise
AHEAD_LIMIT = 0.1  # share of a filter's norm ahead, in its worst channel, that a causal model gets only if asked for
AHEAD_GOAL = 0.05  # and that `energy` stays below
MASK_SHARES = tuple(2.0**-i for i in range(1, 11))  # bands worth a mask, 1/2 to 1/1024


@dataclass(frozen=True)
class Policy:
    """A rule and its name, e.g. "taps 256".  choose: a filter and its site -> what is kept."""

    name: str
    choose: Callable[[AnyFilter, ConvSite], FilterPlan]


def points(context: int) -> int:
    """Points of the spectrum that masks are made on: the power of two, 2 or more, that holds `context`."""
    return 1 << max(1, (context - 1).bit_length())


def band(site: ConvSite, share: float) -> BlockMask:
    """Mask of the lowest `share` of the spectrum that this site's masks are made on."""
    return BlockMask.low_pass(points(site.context), share)


def dense() -> Policy:
    """Keep everything."""
    return Policy("dense", lambda k, site: FilterPlan("dense"))


def taps(count: int) -> Policy:
    """Keep the first `count` taps, in either direction where there are two: a partial convolution."""
    if count < 1:
        raise ValueError(f"a partial convolution keeps at least 1 tap, got {count}")

    def choose(k: AnyFilter, site: ConvSite) -> FilterPlan:
        return FilterPlan("partial", count) if count < k.taps - k.lookahead else FilterPlan("dense")

    return Policy(f"taps {count}", choose)


def low_pass(share: float) -> Policy:
    """Keep the lowest `share` of the spectrum: a frequency-sparse convolution, which reads the future if causal."""
    check_share(share)
    return Policy(f"low-pass {share:g}", lambda k, site: FilterPlan("frequency-sparse", mask=band(site, share)))


def split(head: int, share: float) -> Policy:
    """Keep the first `head` taps and the lowest `share` of the tail's spectrum: a split convolution."""
    check_share(share)
    return Policy(f"split {head}:{share:g}", lambda k, site: FilterPlan("split", head, band(site, share)))


def energy(share: float) -> Policy:
    """Keep `share` of every filter's energy, by taps or by split, whichever keeps less; dense if neither saves."""
    check_share(share)

    def choose(k: AnyFilter, site: ConvSite) -> FilterPlan:
        by_tap = energy_by_tap(k)
        candidates = [FilterPlan("dense"), FilterPlan("partial", first_holding(by_tap, share))]
        n = points(site.context)
        head, tail = (HEAD, tail_of(k, HEAD)) if site.causal else (None, k)
        by_bin, order = energy_by_bin(tail, n), rising(n)
        lost = (1 - share) * by_tap.sum()
        for kept in MASK_SHARES:
            mask = band(site, kept)
            if by_bin[~mask.bins()[order]].sum() > lost:
                break
            plan = FilterPlan("split" if head else "frequency-sparse", head, mask)
            if site.causal and plan.apply(k).leak() > AHEAD_GOAL:
                break
            candidates.append(plan)
        return min(candidates, key=lambda plan: plan.density(k.taps, k.lookahead))

    return Policy(f"energy {share:g}", choose)


POLICIES: Mapping[str, Callable[..., Policy]] = {
    "dense": dense,
    "taps": taps,
    "low_pass": low_pass,
    "split": split,
    "energy": energy,
}


def make_plan(
    sites: Sequence[ConvSite],
    filters: Mapping[str, AnyFilter],
    policy: Policy,
    source: Mapping[str, str | None] | None = None,
) -> Plan:
    """Decide for every site by one policy.

    Args:
        sites: The convolutions of a model, as `sparsify.load(...).sites`.
        filters: Site name -> its filter, as `sparsify.load(...).filters`.
        policy: What to keep of a filter, as `taps(256)` or `split(64, 1 / 8)`.
        source: Name, revision and sha256 of the checkpoint, which the plan remembers.

    Returns:
        A plan with an entry for every site.
    """
    return Plan({site.name: policy.choose(filters[site.name], site) for site in sites}, policy.name, source or {})
