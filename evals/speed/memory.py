"""How much memory a call takes at its peak, by what the system says."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

SELF = Path("/proc/self")


def peak_growth(work: Callable[[], object], device: torch.device) -> int | None:
    """Return by how many bytes the memory in use grows while `work` runs; None where the system does not tell.

    On a CUDA device it is what torch has allocated there.  On a CPU it is the resident memory of this process, after
    what earlier calls have freed went back to the system; Linux alone has a peak that can be set back.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    give_back()
    try:
        (SELF / "clear_refs").write_text("5")  # the peak is what is resident now
    except OSError:
        return None
    before = resident("VmRSS")
    work()
    return max(0, resident("VmHWM") - before)


def give_back() -> None:
    """Have glibc return to the system what it keeps of freed memory."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def resident(name: str) -> int:
    """A size in bytes that the system tells of this process: VmRSS is resident now, VmHWM was so at the peak."""
    found = re.search(rf"^{name}:\s*(\d+) kB", (SELF / "status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
