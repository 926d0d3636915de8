"""What to keep of every convolution: plain data that people can read, diff and feed back in.

kind               kept                                          on a causal model
dense              all taps                                      exact
partial            first `taps` taps                             exact
frequency-sparse   blocks of the spectrum                        reads the future
split              `taps` taps + blocks of the tail's spectrum   reads a little of the future, see Filter.leak

What is kept has the filter's own numbers, or others that do better in its place (`sparsify.search.refit`).  Those are
tensors: the JSON says their digest, and a safetensors file of the same name beside it holds them, as SITE.taps and
SITE.bins.

Of a filter that looks both ways, `taps` taps are the lags -taps < d < taps, and blocks are those of the one spectrum
of all its lags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import save
from torch import Tensor

from sparsify.cpu.linear import PRECISIONS
from sparsify.filters.filter import AnyFilter, BlockedFilter, Filter, Structure, Taps, as_filter, in_memory
from sparsify.filters.monarch import BlockMask
from sparsify.filters.split import kept_bins, masked, near, split
from sparsify.storage.files import parse_json, read_json
from sparsify.storage.reading import is_stream, is_there, label, read_bytes
from sparsify.storage.tensors import read_safetensors

from .coefficients import PARTS, Coefficients

SCHEMA = 4  # 3: nothing of linear layers; 2: heads and tails of split filters parted by a ramp alone
OLDEST = 3  # that means the same here, and is written where it says all
LONGEST = 1 << 31  # taps, far beyond any model
COARSEST = 32  # points of a mask a tap of the filter; more says no more, and only fills memory
KINDS = {  # kind: (has taps, has a mask)
    "dense": (False, False),
    "partial": (True, False),
    "frequency-sparse": (False, True),
    "split": (True, True),
}


@dataclass(frozen=True)
class FilterPlan:
    """What is kept of one filter; valid once made."""

    kind: str
    taps: int | None = None
    mask: BlockMask | None = None
    values: Coefficients | None = None  #: what is kept instead of the filter's own numbers

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of filter plan {self.kind!r:.60}; known: {', '.join(KINDS)}")
        has_taps, has_mask = KINDS[self.kind]
        if has_taps != (self.taps is not None) or has_mask != (self.mask is not None):
            needs = [name for name, has in (("taps", has_taps), ("mask", has_mask)) if has]
            raise ValueError(f"a {self.kind} plan takes {' and '.join(needs) or 'neither taps nor mask'}, got {self}")
        if self.taps is not None and type(self.taps) is not int:
            raise ValueError(f"a plan keeps a whole number of taps, got {self.taps!r:.60}")
        if self.taps is not None and not 1 <= self.taps <= LONGEST:
            raise ValueError(f"a {self.kind} plan keeps at least 1 tap and at most {LONGEST}, got {self.taps!r:.60}")
        if self.values is not None:
            self.check_values(*self.values.sizes)

    def check_values(self, channels: int, taps: int | None, bins: int | None) -> None:
        """Refuse coefficients that are not those of what this plan keeps, in one direction or in both."""
        kept = None if self.mask is None else self.mask.frequencies().numel()
        if (taps is None) != (self.taps is None) or bins != kept or (taps or 0) >= 2 * (self.taps or 1):
            raise ValueError(
                f"a plan of {self} has coefficients for {self.taps or 'no'} taps and {kept or 'no'} bins, "
                f"got {taps or 'no'} and {bins or 'no'}; re-fit it, or leave them out"
            )

    @property
    def leaks(self) -> bool:
        """Whether a causal filter under this plan reads the future at all."""
        return self.mask is not None

    def density(self, length: int, lookahead: int = 0) -> float:
        """Kept taps plus bins, as a share of a filter of `length` taps, `lookahead` of them at negative lags.

        More than 1 costs more than dense.
        """
        if self.kind == "dense":
            return 1.0
        taps = self.near(length, lookahead)
        if self.mask is None:
            return (taps.stop - taps.start) / length
        # taps that the mask does not reach stay
        beyond = max(0, length - lookahead - self.mask.n) + max(0, lookahead - self.mask.n)
        return (taps.stop - taps.start + beyond) / length + self.mask.density

    def near(self, length: int, lookahead: int = 0) -> slice:
        """The taps of a filter of `length` that are kept one by one; all where the plan names no number of them."""
        if self.taps is None:
            return slice(0, length if self.mask is None else 0)
        return near(self.taps, length, lookahead)

    def own(self, k: Taps) -> tuple[Tensor | None, Tensor | None]:
        """What this plan keeps of a filter itself: taps (H, taps), bins (H, count), one or both."""
        k = in_memory(as_filter(k))
        if self.mask is None:
            return k.k[:, self.near(k.taps, k.lookahead)], None
        head, tail = split(k, self.taps, self.mask) if self.taps else (None, k)
        return None if head is None else head.k, kept_bins(tail, self.mask)

    def kept(self, k: Taps) -> tuple[Tensor | None, Tensor | None]:
        """The taps and bins that are convolved with in place of k: the plan's, else k's own."""
        k = in_memory(as_filter(k))
        if self.values is None:
            return self.own(k)
        channels, width, _ = self.values.sizes
        own = self.near(k.taps, k.lookahead)
        if channels != k.channels or (width is not None and width != own.stop - own.start):
            raise ValueError(
                f"the plan's coefficients are for {channels} channels and {width or 'no'} taps, the filter has "
                f"{k.channels} channels and {k.taps} taps; plan for this checkpoint again"
            )
        taps, bins = self.values.taps, self.values.bins
        return None if taps is None else taps.to(k.k.device), None if bins is None else bins.to(k.k.device)

    @overload
    def apply(self, k: Tensor | Filter) -> Filter: ...
    @overload
    def apply(self, k: AnyFilter) -> AnyFilter: ...
    def apply(self, k: Taps) -> AnyFilter:
        """The filter that is convolved with under this plan, in the dtype of `k`, and what is known of it."""
        k = as_filter(k)
        if self.mask is not None and self.mask.n > COARSEST * max(k.taps, 1 << 10):
            raise ValueError(f"a mask of {self.mask.n!r:.60} points is too fine for a filter of {k.taps} taps")
        if isinstance(k, BlockedFilter):
            return self.blocked(k)
        own = self.near(k.taps, k.lookahead)
        taps, bins = self.kept(k)
        if self.mask is None or bins is None:
            return Filter(k.k if taps is None else taps, k.lookahead - own.start)
        reached = self.taps is None or self.taps <= self.mask.n  # else the head fades taps beyond the mask's lags
        all_taps = masked(k if reached else split(k, self.taps or 0)[1], bins, self.mask)
        if taps is None:
            return Filter(all_taps.k.to(k.k.dtype), all_taps.lookahead, Structure(self.mask))
        head = Filter(taps.to(k.k.dtype), k.lookahead - own.start)
        first = all_taps.lookahead - head.lookahead
        all_taps.k[:, first : first + head.taps] += taps
        return Filter(all_taps.k.to(k.k.dtype), all_taps.lookahead, Structure(self.mask, head))

    def outline(self, channels: int, taps: int, lookahead: int = 0) -> Filter:
        """`apply` to a filter of these sizes, in tensors without values."""

        def empty(taps: int, lookahead: int) -> Filter:
            return Filter(torch.empty(channels, taps, device="meta"), lookahead)

        own = self.near(taps, lookahead)
        few = empty(own.stop - own.start, lookahead - own.start) if own.stop > own.start else None
        if self.mask is None:
            assert few is not None
            return few
        reach = max(lookahead, self.mask.n)
        all_taps = empty(reach + max(taps - lookahead, self.mask.n), reach)
        return replace(all_taps, structure=Structure(self.mask, few if self.taps else None))

    def blocked(self, k: BlockedFilter) -> BlockedFilter:
        """`apply` to a filter some channels at a time."""
        if self.kind == "dense":
            return k
        if self.mask is None and self.values is None and self.taps is not None:
            near = self.near(k.taps, k.lookahead)
            few = k.felt(max(near.stop - k.lookahead, k.lookahead - near.start + 1))
            return few.map(self.apply) if few.taps < k.taps else k.map(self.apply)
        mask = self.mask

        def pieces(rows: slice) -> Structure:
            assert mask is not None
            own = k.rows(rows)
            taps, bins = self.of(rows).kept(own)
            first = own.lookahead - self.near(own.taps, own.lookahead).start
            return Structure(mask, None if taps is None else Filter(taps.to(own.k.dtype), first), bins)

        return BlockedFilter(
            self.outline(k.channels, k.taps, k.lookahead),
            lambda rows: self.of(rows).apply(k.rows(rows)),
            pieces=None if mask is None else pieces,
        )

    def of(self, rows: slice) -> FilterPlan:
        """The plan for some of a filter's channels."""
        return self if self.values is None else replace(self, values=self.values.of(rows))

    def __str__(self) -> str:
        parts = [f"{self.taps} taps"] if self.taps is not None else []
        parts += [f"{self.mask.density:.3g} of {self.mask.n} bins"] if self.mask is not None else []
        return " ".join([self.kind, " + ".join(parts)]).strip() + (", re-fitted" if self.values is not None else "")

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"kind": self.kind}
        if self.taps is not None:
            data["taps"] = self.taps
        if self.mask is not None:
            data["mask"] = self.mask.to_dict()
        if self.values is not None:
            data["refit"] = self.values.digest
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], values: Coefficients | None = None) -> FilterPlan:
        """The plan that `to_dict` described.  values: its coefficients, which the dictionary has the digest of only."""
        if unknown := set(data) - {"kind", "taps", "mask", "refit"}:
            raise ValueError(f"a filter plan has kind, taps, mask, refit, got also {', '.join(sorted(unknown)):.200}")
        if data.get("refit") != (None if values is None else values.digest):
            raise ValueError(
                "the re-fitted coefficients are not those that the plan was made with; put plan.json and "
                "plan.safetensors of one plan side by side"
            )
        mask = BlockMask.from_dict(data["mask"]) if "mask" in data else None
        return cls(data.get("kind", ""), data.get("taps"), mask, values)


@dataclass(frozen=True)
class Plan:
    """A decision for every convolution of one checkpoint."""

    filters: Mapping[str, FilterPlan]  #: site name -> what is kept
    policy: str  #: how it was chosen, e.g. "taps 256"
    source: Mapping[str, str | None] = field(default_factory=dict)  #: name, revision and sha256 of the checkpoint
    linears: Mapping[str, str] = field(default_factory=dict)  #: linear layer -> what it multiplies in, if not float32

    def __post_init__(self) -> None:
        for name, precision in self.linears.items():
            if precision not in PRECISIONS:
                raise ValueError(
                    f"the plan has {precision!r:.60} for the linear layer {name:.200}; it may be one of "
                    f"{', '.join(PRECISIONS)}"
                )

    @classmethod
    def dense(cls, names: Iterable[str]) -> Plan:
        """The plan that keeps everything of these sites."""
        return cls({name: FilterPlan("dense") for name in names}, "dense")

    @property
    def is_dense(self) -> bool:
        """Whether the plan changes nothing."""
        return not self.linears and not self.cuts_filters

    @property
    def cuts_filters(self) -> bool:
        """Whether less than all is kept of some filter."""
        return any(f.kind != "dense" for f in self.filters.values())

    @property
    def leaks(self) -> bool:
        return any(f.leaks for f in self.filters.values())

    def check(self, names: list[str]) -> None:
        """Refuse sites that the plan does not cover and entries that the model does not have."""
        missing, extra = sorted(set(names) - set(self.filters)), sorted(set(self.filters) - set(names))
        if missing or extra:
            raise ValueError(
                f"the plan does not fit the model: no entry for {', '.join(missing) or 'nothing'}; "
                f"entries without a site: {', '.join(extra) or 'none'}; rebuild it from this checkpoint"
            )

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA if self.linears else OLDEST,
            "policy": self.policy,
            "source": dict(self.source),
            "filters": {name: f.to_dict() for name, f in self.filters.items()},
            **({"linears": dict(sorted(self.linears.items()))} if self.linears else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Plan:
        """The plan that `to_dict` described.  tensors: its coefficients, as `stored` gave them."""
        if (schema := data.get("schema")) not in (OLDEST, SCHEMA) or type(schema) is not int:
            newer = type(schema) is int and schema > SCHEMA
            remedy = "upgrade sparsify" if newer else "rebuild it with `sparsify convert SRC OUT --force`"
            raise ValueError(f"plan schema {schema!r:.60} is not {OLDEST} or {SCHEMA}; {remedy}")
        found = by_site(tensors or {})
        try:
            if strangers := sorted(found.keys() - data["filters"].keys()):
                raise ValueError(f"there are coefficients for {strangers[0]:.200}, which the plan has no entry for")
            filters = {name: FilterPlan.from_dict(f, found.get(name)) for name, f in data["filters"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the plan is damaged ({type(error).__name__} {error}); rebuild it") from error
        policy, source, linears = data.get("policy", "file"), data.get("source", {}), data.get("linears", {})
        if not isinstance(linears, dict) or not all(isinstance(one, str) for one in linears.values()):
            raise ValueError(f"the plan's linears are names of layers with a precision each, got {linears!r:.60}")
        if not isinstance(policy, str) or not isinstance(source, dict):
            raise ValueError(f"the plan's policy is text and its source an object, got {policy!r:.60}, {source!r:.60}")
        return cls(filters, policy, source, linears)

    @classmethod
    def from_dict_beside(cls, data: Mapping[str, Any], path: Path) -> Plan:
        """The plan that `to_dict` described, its coefficients, if it has any, from the safetensors file `path`."""
        if not has_coefficients(data):
            return cls.from_dict(data)
        if not path.is_file():
            raise FileNotFoundError(
                f"the plan's re-fitted coefficients are not there: {path}; put the file that was written with it there"
            )
        try:
            return cls.from_dict(data, read_safetensors(path))
        except ValueError as error:
            raise ValueError(f"{path} does not fit its plan: {error}") from error

    def stored(self) -> dict[str, Tensor]:
        """Every coefficient that is not a filter's own, as a file has them: SITE.taps and SITE.bins."""
        return {
            f"{name}.{part}": tensor
            for name, kept in self.filters.items()
            if kept.values is not None
            for part, tensor in kept.values.stored().items()
        }

    def to_safetensors(self) -> bytes | None:
        """The file that lies beside the JSON; None where all coefficients are the filters' own."""
        tensors = {name: tensor.clone() for name, tensor in self.stored().items()}  # a file knows no shared memory
        return save(tensors) if tensors else None

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a JSON file, with the safetensors file of the same name where it needs one; or in a pipe."""
        if path.is_dir():
            raise ValueError(f"{label(path)} is a folder, and a plan is a file; pass {label(path / 'plan.json')}")
        if not is_there(path):
            raise FileNotFoundError(f"there is no plan file {path}; `sparsify convert` writes one as OUT/plan.json")
        try:
            data = parse_json(read_bytes(path, "a plan.json"), path) if is_stream(path) else read_json(path)
        except ValueError as error:
            raise ValueError(f"{label(path)} is no plan: {error}; see `sparsify convert`") from error
        if not isinstance(data.get("filters"), dict):
            raise ValueError(f"{label(path)} holds no plan; pass the plan.json that `sparsify convert` wrote")
        if is_stream(path) and has_coefficients(data):
            raise ValueError(
                f"the plan from {label(path)} has re-fitted coefficients, which lie in a file beside plan.json; "
                f"pass plan.json itself"
            )
        return cls.from_dict_beside(data, path.with_suffix(".safetensors"))

    @property
    def sha256(self) -> str:
        """Digest of the decision alone: equal plans for equal weights have equal digests, wherever they lie."""
        told = self.to_dict()
        decision: dict[str, Any] = {name: told[name] for name in ("filters", "linears") if name in told}
        decision |= {"weights": self.source.get("sha256")}
        return hashlib.sha256(json.dumps(decision, sort_keys=True).encode()).hexdigest()


def has_coefficients(data: Mapping[str, Any]) -> bool:
    """Whether a plan as `to_dict` describes it is told by numbers in another file, too."""
    filters = data.get("filters")
    entries = filters.values() if isinstance(filters, dict) else ()
    return any(isinstance(entry, dict) and "refit" in entry for entry in entries)


def by_site(tensors: Mapping[str, Tensor]) -> dict[str, Coefficients]:
    """The coefficients in a file, by site.  tensors: as `Plan.stored` gives them."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        site, _, part = name.rpartition(".")
        if part not in PARTS or not site:
            raise ValueError(f"coefficients are called SITE.{' or SITE.'.join(PARTS)}, got {name!r:.200}")
        parts.setdefault(site, {})[part] = tensor
    found = {}
    for site, given in parts.items():
        try:
            found[site] = Coefficients.from_stored(given)
        except ValueError as error:
            raise ValueError(f"{site:.200}: {error}") from error
    return found
