"""What to keep of every convolution: plain data that people can read, diff and feed back in.

kind               kept                                          on a causal model
dense              all taps                                      exact
partial            first `taps` taps                             exact
frequency-sparse   blocks of the spectrum                        reads the future
split              `taps` taps + blocks of the tail's spectrum   reads a little of the future, see Filter.leak
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

from .files import read_json
from .monarch import BlockMask
from .split import band_limit, split

SCHEMA = 2
LONGEST = 1 << 31  # taps, far beyond any model
COARSEST = 8  # points of a mask a tap of the filter; more says no more, and only fills memory
KINDS = {  # kind: (has taps, has a mask)
    "dense": (False, False),
    "partial": (True, False),
    "frequency-sparse": (False, True),
    "split": (True, True),
}


@dataclass(frozen=True)
class Filter:
    """A filter as it is applied: k (H, K) float32 with tap j at lag j - ahead.

    Where a mask of n points is given, the lags -n .. n - 1 are `head` (H, taps) at lags 0 .. taps - 1 plus a rest whose
    spectrum is zero off the mask.
    """

    k: Tensor
    ahead: int = 0
    mask: BlockMask | None = None
    head: Tensor | None = None

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
        if self.taps is not None and type(self.taps) is not int:
            raise ValueError(f"a plan keeps a whole number of taps, got {self.taps!r:.60}")
        if self.taps is not None and not 1 <= self.taps <= LONGEST:
            raise ValueError(f"a {self.kind} plan keeps at least 1 tap and at most {LONGEST}, got {self.taps!r:.60}")

    @property
    def leaks(self) -> bool:
        """Whether a causal filter under this plan reads the future at all."""
        return self.mask is not None

    def density(self, length: int) -> float:
        """Kept taps plus bins, as a share of a filter of `length` taps; more than 1 costs more than dense."""
        if self.kind == "dense":
            return 1.0
        taps = min(self.taps or 0, length)
        if self.mask is None:
            return taps / length
        beyond = max(0, length - self.mask.n)  # taps that the mask does not reach stay
        return (taps + beyond) / length + self.mask.density

    def apply(self, k: Tensor) -> Filter:
        """The filter that is convolved with under this plan.  k: (H, K) float32."""
        if self.mask is None:
            return Filter(k[:, : self.taps])
        if self.mask.n > COARSEST * max(k.shape[-1], 1 << 10):
            raise ValueError(f"a mask of {self.mask.n!r:.60} points is too fine for a filter of {k.shape[-1]} taps")
        head, tail = split(k, self.taps) if self.taps else (None, k)
        kept, ahead = band_limit(tail, self.mask)
        if head is not None:
            kept[:, ahead : ahead + head.shape[-1]] += head
            head = head.to(k.dtype)
        return Filter(kept.to(k.dtype), ahead, self.mask, head)

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
        if (schema := data.get("schema")) != SCHEMA:
            newer = type(schema) is int and schema > SCHEMA
            remedy = "upgrade sparsify" if newer else "rebuild it with `sparsify convert SRC OUT --force`"
            raise ValueError(f"plan schema {schema!r:.60} is not {SCHEMA}; {remedy}")
        try:
            filters = {name: FilterPlan.from_dict(f) for name, f in data["filters"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the plan is damaged ({type(error).__name__} {error}); rebuild it") from error
        policy, source = data.get("policy", "file"), data.get("source", {})
        if not isinstance(policy, str) or not isinstance(source, dict):
            raise ValueError(f"the plan's policy is text and its source an object, got {policy!r:.60}, {source!r:.60}")
        return cls(filters, policy, source)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan in a JSON file."""
        if not path.is_file():
            raise FileNotFoundError(f"there is no plan file {path}; `sparsify convert` writes one as OUT/plan.json")
        try:
            data = read_json(path)
        except ValueError as error:
            raise ValueError(f"{path} is no plan: {error}; see `sparsify convert`") from error
        return cls.from_dict(data)

    @property
    def sha256(self) -> str:
        """Digest of the decision alone: equal plans for equal weights have equal digests, wherever they lie."""
        decision = {"filters": self.to_dict()["filters"], "weights": self.source.get("sha256")}
        return hashlib.sha256(json.dumps(decision, sort_keys=True).encode()).hexdigest()
