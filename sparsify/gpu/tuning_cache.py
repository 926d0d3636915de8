"""Kernels that were timed on a card, and the quickest of them kept: what `sparsify bench --calibrate` finds on a GPU.

A choice is taken where card, type, length, what is kept of the filter, and the sizes of the batch are those it was made
for, where the kernel still fits the card, and where sources, options and compiler are the ones it was timed with.
Everything else goes by the planner's prediction.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sparsify.cpu.backend import bucketed_length
from sparsify.cpu.cost_model import stored as costs_file
from sparsify.filters.filter import Structure
from sparsify.storage.files import write_whole

from . import jit, planner
from .devices import Card
from .planner import DIRECT_TAPS
from .tiling import Tiling, TwoLevel

SCHEMA = 1
LEAST_REGISTERS = 32  # of a thread, which a number of resident blocks must leave


@dataclass(frozen=True)
class Case:
    """What a kernel is chosen for.  rows: B * H signals, batch: those that share a spectrum, both by powers of two."""

    dtype: str
    seqlen: int
    kept: str  # of the filter: "all", "64 taps", or the digest of a mask and its head
    rows: int
    batch: int

    @classmethod
    def plain(cls, dtype: str, seqlen: int, batch: int, channels: int, taps: int) -> Case:
        """For a filter of which nothing is known but its taps."""
        some = bucketed_length(taps) < bucketed_length(seqlen) or taps <= DIRECT_TAPS
        kept = f"{taps} taps" if some else "all"  # where their number matters
        return cls(dtype, bucketed_length(seqlen), kept, *buckets(batch, channels))

    @classmethod
    def masked(cls, dtype: str, seqlen: int, batch: int, channels: int, structure: Structure) -> Case:
        """For a filter that is a head and what a mask leaves of the rest."""
        head = 0 if structure.head is None else structure.head.taps
        stored = json.dumps([structure.mask.to_dict(), head])
        kept = f"mask {hashlib.sha256(stored.encode()).hexdigest()[:16]}"
        return cls(dtype, bucketed_length(seqlen), kept, *buckets(batch, channels))

    @property
    def taps(self) -> int | None:
        """Of a filter whose taps were counted."""
        return int(self.kept.split()[0]) if self.kept.endswith(" taps") else None

    def __str__(self) -> str:
        return f"{self.dtype} {self.seqlen} {self.kept} rows 2^{self.rows} batch 2^{self.batch}"


def buckets(batch: int, channels: int) -> tuple[int, int]:
    """Powers of two, rounded down, of the signals and of those that share a spectrum."""
    return (batch * channels).bit_length() - 1, batch.bit_length() - 1


@dataclass(frozen=True)
class Choice:
    """A kernel, and what it took.

    how: "direct" (Toeplitz matrices alone), or a name of `dispatch.ways`: "plain", "masked" or "decimated".
    tiling: of a transform; None where how is "direct", or for a mask "decimated" or "plain", cases of their own.
    resident: blocks that a multiprocessor is to hold at once.
    """

    how: str
    tiling: Tiling | TwoLevel | None = None
    resident: int = 1
    seconds: float = 0.0

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Choice:
        """What `asdict` made.  Raises ValueError, TypeError or KeyError for what no kernel is."""
        shape = data["tiling"]
        return cls(**{**data, "tiling": None if shape is None else shaped(shape)})


def shaped(data: Mapping[str, Any]) -> Tiling | TwoLevel:
    if "inner" in data:
        return TwoLevel(int(data["radix"]), Tiling(**{**data["inner"], "factors": tuple(data["inner"]["factors"])}))
    return Tiling(**{**data, "factors": tuple(data["factors"])})


def fits(choice: Choice, card: Card, case: Case, structure: Structure | None = None) -> bool:
    """Whether the kernel may run for this case: every constraint of the planner, on this card.

    structure: of a case with a mask.
    """
    if choice.tiling is None:
        few = case.taps is not None and case.taps <= DIRECT_TAPS
        return few and choice.how == "direct" if structure is None else choice.how in ("plain", "decimated")
    if structure is not None and not suits(choice, structure):
        return False
    if structure is None and choice.how != "plain":
        return False
    inner, radix, history = choice.tiling.inner, choice.tiling.radix, choice.tiling.inner.source == "history"
    if (radix > 1) != (inner.source == "complex") or radix not in (1, *planner.OUTER, *planner.WIDE):
        return False
    if history and (case.taps is None or case.taps > case.seqlen):
        return False
    seqlen, rows = -(-case.seqlen // radix), radix << case.rows
    problem = planner.Problem(card, seqlen, case.dtype, rows, inner.source, case.taps if history else None)
    return all(constraint.holds(problem, inner) for constraint in planner.CONSTRAINTS) and (
        1 <= choice.resident <= inner.occupancy(card, case.dtype, LEAST_REGISTERS)
    )


def suits(choice: Choice, structure: Structure) -> bool:
    """Whether a kernel can skip what this mask drops, and add the head."""
    found = choice.tiling
    if choice.how != "masked" or found is None or found.inner.source == "history":
        return False
    return found.points == structure.mask.n and (structure.head is None or found.takes_head)


# --- kept on disk ----------------------------------------------------------------------------------------------------


def stored(card: str) -> Path:
    """Where the choices for a card are kept."""
    return costs_file().with_name(f"gpu-{re.sub('[^A-Za-z0-9]+', '-', card).strip('-')}.json")


def code(arch: str) -> str:
    """Names sources, options and compiler of the kernels: what a timing says nothing about once it has changed."""
    return jit.key(jit.Kernel("fftconv.cu", "conv"), arch)


@cache
def choices(card: str) -> Mapping[str, Any]:
    """What is stored for a card: its code, and a choice for every case; empty where nothing is, or nothing legible."""
    try:
        data = json.loads(stored(card).read_text())
        return data if data["schema"] == SCHEMA and data["card"] == card and data["choices"] else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return {}


def choice(card: Card, case: Case, structure: Structure | None = None) -> Choice | None:
    """The kernel that was quickest for this case on this card; None where it was not timed, or cannot be used now."""
    data = choices(card.name)
    found = data.get("choices", {}).get(str(case))
    if found is None:
        return None
    try:
        made = Choice.from_dict(found)
        good = fits(made, card, case, structure) and data["code"] == code(data["arch"])
    except Exception:  # of another version, or edited: the planner knows a way
        return None
    return made if good else None


def keep(card: str, arch: str, found: Mapping[Case, Choice]) -> Path:
    """Store choices for the processes to come, beside those made earlier with the same code; returns where.

    arch: what the kernels were compiled for, "sm_90a".
    """
    path = stored(card)
    choices.cache_clear()  # another process may have found some
    before = choices(card)
    own = {"schema": SCHEMA, "card": card, "arch": arch, "code": code(arch)}
    earlier = before["choices"] if before and before["code"] == own["code"] else {}
    made = {**own, "choices": {**earlier, **{str(case): asdict(choice) for case, choice in found.items()}}}
    write_whole(path, json.dumps(made, indent=1) + "\n")
    choices.cache_clear()
    return path
