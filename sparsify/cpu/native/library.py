"""Find the compiled kernels, check that they are built from the sources beside them, load them once."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import warnings
from pathlib import Path

import torch

WITHOUT = "sparsify runs without its compiled kernels"  # pyproject.toml's filterwarnings knows this sentence
BUILD = "python -m sparsify.cpu.native.build"
FOLDER = Path(__file__).resolve().parent

_lock = threading.Lock()
_found: tuple[ctypes.CDLL | None, str] | None = None  # what `find` said, once somebody asked
_warned = threading.Lock()  # taken by the one thread that warns, and never given back


def load() -> ctypes.CDLL | None:
    """The kernel library, the same at every call; None where there is none, after one warning that says why.

    SPARSIFY_NATIVE=0 in the environment switches it off, at any time and silently.  SPARSIFY_ISA=avx2 (or base) picks
    an instruction set when the library is loaded.
    """
    if switched_off():
        return None
    library, why = once()
    if library is None:
        warn(why)
    return library


def describe() -> tuple[bool, str]:
    """Whether the kernels are in use, and what they use or why not, in a few words."""
    if switched_off():
        return False, "switched off: SPARSIFY_NATIVE=0"
    try:
        library, why = once()
    except ValueError as error:
        return False, str(error)
    if library is None:
        return False, f"{why}: {BUILD}"
    library.sparsify_isa.restype = ctypes.c_char_p
    threads = "torch's OpenMP threads" if gomp_parallel() else "threads of their own"
    return True, f"{library.sparsify_isa().decode()}, {threads}"


def switched_off() -> bool:
    return os.environ.get("SPARSIFY_NATIVE") == "0"


def once() -> tuple[ctypes.CDLL | None, str]:
    """What `find` said when it was first asked, by whichever thread."""
    global _found
    if _found is None:
        with _lock:
            if _found is None:
                _found = find(FOLDER)
    return _found


def warn(why: str) -> None:
    """One RuntimeWarning in the life of the process."""
    if _warned.acquire(blocking=False):
        warnings.warn(
            f"{WITHOUT} ({why}): results are as accurate, but a CPU takes longer; "
            f"`{BUILD}` compiles them and needs a C++ compiler, SPARSIFY_NATIVE=0 keeps this quiet",
            RuntimeWarning,
            stacklevel=3,
        )


def find(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    """The library in `folder`, ready for calls, or None and why."""
    from . import build  # not at the top: `python -m` runs it as a second module, and says so, if it was imported

    path = folder / build.LIBRARY
    if not path.is_file():
        return None, "not built"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        return None, f"cannot be loaded: {error}"
    if build.sources(folder) and build.built_from(library) != build.digest(folder):
        return None, "built from other sources than those beside it"
    choose_isa(library)
    library.sparsify_threads.argtypes = [ctypes.c_void_p]
    library.sparsify_threads.restype = None
    library.sparsify_threads(gomp_parallel())
    return library, ""


def choose_isa(library: ctypes.CDLL) -> None:
    """Nothing, or a ValueError where SPARSIFY_ISA names what cannot run here: whoever asks for it measures with it."""
    isa = os.environ.get("SPARSIFY_ISA")
    if isa:
        library.sparsify_use.argtypes = [ctypes.c_char_p]
        library.sparsify_use.restype = ctypes.c_int
        if not library.sparsify_use(isa.encode()):
            raise ValueError(f"SPARSIFY_ISA is {isa!r}, which cannot run here; take avx512, avx2 or base, or unset it")


def gomp_parallel() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded, None where it has none that we can find.

    A second runtime would keep threads of its own spinning on the same cores, so nothing new is loaded here.
    """
    if sys.platform == "linux":  # torch's symbols bind to the global scope (LD_PRELOAD is there) before its own needs
        places = [None, "libtorch_cpu.so"]
    elif sys.platform == "darwin":  # to what it was linked with, whatever else is loaded
        places = [f"{Path(torch.__file__).parent}/lib/libtorch_cpu.dylib"]
    else:
        return None
    for place in places:
        try:
            function = ctypes.CDLL(place, mode=os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None
