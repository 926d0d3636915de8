"""Compile the kernel sources beside this file into one shared library: `python -m sparsify.cpu.native.build`.

setup.py loads this file by its path, before anything is installed: the standard library is all it imports.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = "_kernels.so"  # on every system: it is loaded by its path, and nobody else links to it

COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),  # never -ffast-math: NaN stays NaN
    "-Wfatal-errors",  # the first complaint is the one to read
)
X86_FLAGS = {  # sources for one instruction set of x86-64; every other source runs on any CPU
    "kernels_avx512.cpp": ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mf16c"),
    "kernels_avx2.cpp": ("-mavx2", "-mfma", "-mf16c"),
}
BASE_ONLY = ("-DSPARSIFY_BASE_ONLY",)  # for every source where those two cannot be compiled
LINK = ("-shared", "-lm", "-lpthread")

JOBS = 2  # compilers at work at the same time
LAST_LINES = 6  # of what a failed compiler said


class BuildError(RuntimeError):
    """Why there is no library, in one sentence; what the compiler said follows on lines of its own."""


def sources(folder: Path = FOLDER) -> list[Path]:
    """The kernel sources of a folder, headers too, by name; empty where there are none."""
    return sorted(path for path in folder.iterdir() if path.suffix in {".cpp", ".h"})


def digest(folder: Path = FOLDER) -> str:
    """What a library is built from: sha256 over names, contents and flags, 16 hex digits."""
    total = hashlib.sha256(repr((FLAGS, X86_FLAGS, BASE_ONLY, LINK)).encode())
    for path in sources(folder):
        total.update(f"\n{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return total.hexdigest()[:16]


def built_from(library: ctypes.CDLL) -> str:
    """The digest that was baked into a library, empty where it has none."""
    try:
        function = library.sparsify_sources
    except AttributeError:
        return ""
    function.restype = ctypes.c_char_p
    return (function() or b"").decode()


def is_current(library: Path = FOLDER / LIBRARY, folder: Path = FOLDER) -> bool:
    """Whether a library is there, can be loaded here, and is built from the sources of `folder`."""
    try:
        return library.is_file() and built_from(ctypes.CDLL(str(library))) == digest(folder)
    except OSError:
        return False


def find_compiler() -> list[str]:
    """The C++ compiler as the first words of a command: $CXX, else the first of COMPILERS on PATH."""
    if words := shlex.split(os.environ.get("CXX", "")):
        return words
    for name in COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(
        f"no C++ compiler: $CXX is not set and none of {', '.join(COMPILERS)} is on PATH; install one "
        "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install)"
    )


def call(compiler: Sequence[str], arguments: Sequence[str], task: str) -> str:
    """What the compiler printed, or a BuildError with the last of its complaints."""
    words = [*compiler, *arguments]
    name = shlex.join(compiler)
    try:
        run = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise BuildError(f"the C++ compiler {name} cannot be run: {error.strerror}; set CXX to one that can") from None
    if run.returncode:
        output = run.stderr.strip().splitlines()[-LAST_LINES:]
        colon = ":" if output else f" (exit status {run.returncode}, without a word)"
        raise BuildError("\n  ".join([f"the C++ compiler {name} failed at {task}{colon}", *output]))
    return run.stdout


def build(
    library: Path = FOLDER / LIBRARY,
    folder: Path = FOLDER,
    compiler: Sequence[str] | None = None,
    extra: Sequence[str] = (),
) -> Path:
    """`library`, compiled from the sources in `folder`, or a BuildError and `library` as it was.

    compiler: first words of the command, None = `find_compiler`.  extra: flags for compiling and linking, after ours.
    """
    compiler = compiler or find_compiler()
    files = [path for path in sources(folder) if path.suffix == ".cpp"]
    if not files:
        raise BuildError(f"no kernel sources in {folder}; install sparsify again, or clone it again")
    # The compiler knows what it compiles for; Python knows only where it runs.
    common = [*FLAGS, f'-DSPARSIFY_SOURCES="{digest(folder)}"']
    if not call(compiler, ["-dumpmachine"], "-dumpmachine").startswith(("x86_64", "amd64")):
        files = [path for path in files if path.name not in X86_FLAGS]
        common += BASE_ONLY

    # Beside, then renamed: a process that has the old library loaded keeps it whole, and nobody sees half a new one.
    beside = library.with_name(f"{library.name}.{os.getpid()}")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(JOBS) as pool:

        def compile_one(path: Path) -> str:
            target = str(Path(scratch) / f"{path.stem}.o")
            flags = [*common, *X86_FLAGS.get(path.name, ()), *extra]
            call(compiler, [*flags, "-c", str(path), "-o", target], path.name)
            return target

        objects = list(pool.map(compile_one, files))
        try:
            call(compiler, [*extra, *objects, *LINK, "-o", str(beside)], "linking")
            beside.replace(library)
        finally:
            beside.unlink(missing_ok=True)
    return library


def main() -> None:
    """Build in place, and say what was built or why not."""
    start = time.perf_counter()
    try:
        print(f"built {build()} in {time.perf_counter() - start:.0f} s")
    except BuildError as error:
        sys.exit(f"the kernels were not compiled: {error}")


if __name__ == "__main__":
    main()
