"""How much memory prepared filters may take on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

SHARE = 4  # prepared filters of a model take at most one part in so many of what is free
LEAST = 1 << 28
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def budget() -> int:
    """Bytes that the prepared filters of one model may take together.

    SPARSIFY_MEMORY says it, as "800M" or "4G"; else it is a quarter of what is free now, down to a power of two so that
    two processes most often agree, and 256 MB at least.
    """
    if given := os.environ.get("SPARSIFY_MEMORY"):
        return parsed(given)
    free = available()
    return LEAST if free is None else max(LEAST, 1 << (max(1, free // SHARE).bit_length() - 1))


def parsed(text: str) -> int:
    """Bytes in words such as "800M" or "4G"."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"SPARSIFY_MEMORY is a number of bytes such as 800M or 4G, got {text!r:.60}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def available(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can still get, by what the system says; None where it says nothing."""
    found = [known for known in (of_system(proc), of_group(cgroup), of_process(proc)) if known is not None]
    return max(0, min(found)) if found else None


def of_system(proc: Path) -> int | None:
    """What is free on the machine."""
    if found := re.search(r"^MemAvailable:\s*(\d+) kB", read(proc / "meminfo"), re.MULTILINE):
        return 1024 * int(found[1])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def of_group(cgroup: Path) -> int | None:
    """What is left to the group of processes that this one is confined to."""
    most, used = read(cgroup / "memory.max"), read(cgroup / "memory.current")
    return int(most) - int(used) if most.strip().isdigit() and used.strip().isdigit() else None


def of_process(proc: Path) -> int | None:
    """What is left of the limit on this process' addresses, as `ulimit -v` sets it."""
    try:
        import resource
    except ImportError:  # not Unix
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    found = re.search(r"^VmSize:\s*(\d+) kB", read(proc / "self" / "status"), re.MULTILINE)
    return limit - 1024 * int(found[1]) if limit != resource.RLIM_INFINITY and found else None


def read(path: Path) -> str:
    """What a file of the system says, nothing where there is none."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
