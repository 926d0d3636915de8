"""What the kernels can count on: multiprocessors, memories and rates of each card, and where the numbers come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Card:
    """What a GPU offers.  Bytes, bytes a second, floating-point operations a second, Hz."""

    name: str
    arch: str  # "sm_90"
    multiprocessors: int
    shared_per_block: int  # after opting in
    shared_per_multiprocessor: int
    bandwidth: float  # of DRAM
    matrix_rate: float  # that mma.sync reaches with 16-bit inputs and float32 sums
    l2: int
    clock: float
    lanes: int = 128  # float32 instructions a multiprocessor and clock
    threads_per_multiprocessor: int = 2048
    blocks_per_multiprocessor: int = 32
    registers_per_multiprocessor: int = 65536
    provenance: str = "all nominal"

    @property
    def shared_rate(self) -> float:
        """Bytes a second of all shared memories: 32 banks of 4 bytes a clock each."""
        return self.multiprocessors * 128 * self.clock

    @property
    def pointwise_rate(self) -> float:
        """float32 instructions a second."""
        return self.multiprocessors * self.lanes * self.clock

    @classmethod
    def of(cls, device: Any = None) -> Card:
        """The card at hand, sizes as the driver states them, rates by its architecture.

        device: what torch calls one; None is the current one.
        """
        import torch

        p = torch.cuda.get_device_properties(device)
        base = nearest(p.major, p.minor)
        grown = p.multi_processor_count / base.multiprocessors
        stated = {
            "multiprocessors": p.multi_processor_count,
            "shared_per_block": getattr(p, "shared_memory_per_block_optin", None),
            "shared_per_multiprocessor": getattr(p, "shared_memory_per_multiprocessor", None),
            "threads_per_multiprocessor": getattr(p, "max_threads_per_multi_processor", None),
            "registers_per_multiprocessor": getattr(p, "regs_per_multiprocessor", None),
            "l2": getattr(p, "L2_cache_size", None),
        }
        return replace(
            base,
            name=p.name,
            arch=f"sm_{p.major}{p.minor}",
            matrix_rate=base.matrix_rate * grown,
            provenance=f"sizes from the driver, rates of {base.name} ({base.provenance})",
            **{key: value for key, value in stated.items() if value},
        )


CARDS = {
    card.arch: card
    for card in (
        Card(
            "A100 40GB", "sm_80", 108, 166912, 167936, 1.555e12, 250e12, 40 << 20, 1.41e9, lanes=64,
            provenance="all nominal, matrix rate 80 % of nominal",
        ),
        Card(
            "RTX A6000", "sm_86", 84, 101376, 102400, 0.768e12, 124e12, 6 << 20, 1.8e9,
            threads_per_multiprocessor=1536, blocks_per_multiprocessor=16,
            provenance="all nominal, matrix rate 80 % of nominal",
        ),
        Card(
            "L40S", "sm_89", 142, 101376, 102400, 0.864e12, 290e12, 96 << 20, 2.52e9,
            threads_per_multiprocessor=1536, blocks_per_multiprocessor=24,
            provenance="all nominal, matrix rate 80 % of nominal",
        ),
        Card(
            "H200", "sm_90", 132, 232448, 233472, 4.3e12, 490e12, 50 << 20, 1.755e9,
            provenance="bandwidth 90 %, matrix rate 62 % of nominal, the rest nominal",
        ),
        Card(
            "B200", "sm_100", 148, 232448, 233472, 8e12, 550e12, 126 << 20, 1.85e9,
            provenance="all nominal, matrix rate a guess: mma.sync is not this card's own instruction",
        ),
    )
}  # fmt: skip


def nearest(major: int, minor: int) -> Card:
    """The card of the table whose architecture comes closest from below."""
    if major >= 12:  # sold as the next generation of sm_89: its shared memory, not that of sm_100
        return CARDS["sm_89"]
    below = [card for card in CARDS.values() if int(card.arch[3:]) <= 10 * major + minor]
    if not below:
        raise ValueError(f"the kernels need an architecture from sm_80 on, this card is sm_{major}{minor}; use the CPU")
    return max(below, key=lambda card: int(card.arch[3:]))


def card(arch: str | None = None) -> Card:
    """The card of the table with this architecture; without one the card at hand, or where there is none an H200."""
    if arch is None:
        import torch

        return Card.of() if torch.cuda.is_available() else CARDS["sm_90"]
    arch = arch.removesuffix("a")  # sm_90a is how sm_90 compiles
    if arch not in CARDS:
        raise ValueError(f"no numbers for a card of architecture {arch!r}; choose from {', '.join(CARDS)}")
    return CARDS[arch]
