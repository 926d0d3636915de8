"""What to keep of every convolution: plain data that people can read, diff and feed back in.

kind               kept                                          on a causal model
dense              all taps                                      exact
partial            first `taps` taps                             exact
frequency-sparse   blocks of the spectrum                        reads the future
split              `taps` taps + blocks of the tail's spectrum   reads a little of the future, see Filter.leak

Of a filter that looks both ways, `taps` taps are the lags -taps < d < taps, and blocks are those of the one spectrum
of all its lags.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .monarch import BlockMask
from .split import band_limit, near, split

SCHEMA = 2
KINDS = {  # kind: (has taps, has a mask)
    "dense": (False, False),
    "partial": (True, False),
    "frequency-sparse": (False, True),
    "split": (True, True),
}


@dataclass(frozen=True)
class Filter:
    """A filter as it is applied: k (H, K) float32 with tap j at lag j - ahead.

    Where a mask of n points is given, the lags -n .. n - 1 are `head` (H, taps), tap j at lag j - head_ahead, plus a
    rest whose spectrum is zero off the mask.
    """

    k: Tensor
    ahead: int = 0
    mask: BlockMask | None = None
    head: Tensor | None = None
    head_ahead: int = 0

    def leak(self) -> float:
        """Norm of the taps that read the future over the norm of all taps; the worst channel."""
        norm = self.k.double().norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        return (self.k[:, : self.ahead].double().norm(dim=-1) / norm).max().item()

    def cut(self) -> Filter:
        """The same filter without its negative lags: what a causal model computes when it really generates."""
        return Filter(self.k[:, self.ahead :])


@dataclass(frozen=True)
class FilterPlan:
    """What is kept of one filter; valid once made."""

    kind: str
    taps: int | None = None
    mask: BlockMask | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of filter plan {self.kind!r}; known: {', '.join(KINDS)}")
        has_taps, has_mask = KINDS[self.kind]
        if has_taps != (self.taps is not None) or has_mask != (self.mask is not None):
            needs = [name for name, has in (("taps", has_taps), ("mask", has_mask)) if has]
            raise ValueError(f"a {self.kind} plan takes {' and '.join(needs) or 'neither taps nor mask'}, got {self}")
        if self.taps is not None and self.taps < 1:
            raise ValueError(f"a {self.kind} plan keeps at least 1 tap, got {self.taps}")

    @property
    def leaks(self) -> bool:
        """Whether a causal filter under this plan reads the future at all."""
        return self.mask is not None

    def density(self, length: int, ahead: int = 0) -> float:
        """Kept taps plus bins, as a share of a filter of `length` taps, `ahead` of them at negative lags.

        More than 1 costs more than dense.
        """
        if self.kind == "dense":
            return 1.0
        taps = self.near(length, ahead)
        if self.mask is None:
            return (taps.stop - taps.start) / length
        # taps that the mask does not reach stay
        beyond = max(0, length - ahead - self.mask.n) + max(0, ahead - self.mask.n)
        return (taps.stop - taps.start + beyond) / length + self.mask.density

    def near(self, length: int, ahead: int = 0) -> slice:
        """The taps of a filter of `length` that are kept one by one; all where the plan names no number of them."""
        if self.taps is None:
            return slice(0, length if self.mask is None else 0)
        return near(self.taps, length, ahead)

    def apply(self, k: Tensor, ahead: int = 0) -> Filter:
        """The filter that is convolved with under this plan.  k: (H, K) float32, tap j at lag j - ahead."""
        own = self.near(k.shape[-1], ahead)
        if self.mask is None:
            return Filter(k[:, own], ahead - own.start)
        head, tail = split(k, self.taps, ahead) if self.taps else (None, k)
        kept, reach = band_limit(tail, self.mask, ahead)
        if head is not None:
            first = reach - (ahead - own.start)
            kept[:, first : first + head.shape[-1]] += head
            head = head.to(k.dtype)
        return Filter(kept.to(k.dtype), reach, self.mask, head, ahead - own.start if head is not None else 0)

    def __str__(self) -> str:
        parts = [f"{self.taps} taps"] if self.taps is not None else []
        parts += [f"{self.mask.density:.3g} of {self.mask.n} bins"] if self.mask is not None else []
        return " ".join([self.kind, " + ".join(parts)]).strip()

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = {"kind": self.kind}
        if self.taps is not None:
            data["taps"] = self.taps
        if self.mask is not None:
            data["mask"] = self.mask.to_dict()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FilterPlan:
        if unknown := set(data) - {"kind", "taps", "mask"}:
            raise ValueError(f"a filter plan has kind, taps and mask, got also {', '.join(sorted(unknown))}")
        mask = BlockMask.from_dict(data["mask"]) if "mask" in data else None
        return cls(data.get("kind", ""), data.get("taps"), mask)


@dataclass(frozen=True)
class Plan:
    """A decision for every convolution of one checkpoint."""

    filters: Mapping[str, FilterPlan]  # site name -> what is kept
    policy: str  # how it was chosen, e.g. "taps 256"
    source: Mapping[str, str | None] = field(default_factory=dict)  # name, revision and sha256 of the checkpoint

    @classmethod
    def dense(cls, names: Iterable[str]) -> Plan:
        """The plan that keeps everything of these sites."""
        return cls({name: FilterPlan("dense") for name in names}, "dense")

    @property
    def is_dense(self) -> bool:
        return all(f.kind == "dense" for f in self.filters.values())

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
            "schema": SCHEMA,
            "policy": self.policy,
            "source": dict(self.source),
            "filters": {name: f.to_dict() for name, f in self.filters.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        if data.get("schema") != SCHEMA:
            raise ValueError(f"plan schema {data.get('schema')!r} is not {SCHEMA}; rebuild it with `sparsify convert`")
        try:
            filters = {name: FilterPlan.from_dict(f) for name, f in data["filters"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the plan is damaged ({type(error).__name__} {error}); rebuild it") from error
        return cls(filters, data.get("policy", "file"), data.get("source", {}))

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a JSON file."""
        if not path.is_file():
            raise FileNotFoundError(f"there is no plan file {path}; `sparsify convert` writes one as OUT/plan.json")
        try:
            data = json.loads(path.read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is no plan: {error}; see `sparsify convert`") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} is no plan but a {type(data).__name__}; see `sparsify convert`")
        return cls.from_dict(data)

    @property
    def sha256(self) -> str:
        """Digest of the decision alone: equal plans for equal weights have equal digests, wherever they lie."""
        decision = {"filters": self.to_dict()["filters"], "weights": self.source.get("sha256")}
        return hashlib.sha256(json.dumps(decision, sort_keys=True).encode()).hexdigest()
