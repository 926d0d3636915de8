"""Kernel sources run without a GPU: compiled for this machine with tests/emulator, and launched from Python.

    kernels = emulation.build("cuda/conv.cu", {"SPARSIFY_WARPS": 4})
    counters = kernels.run("conv", call, grid=(rows, 1, 1), threads=128, shared_bytes=4096, order="random", seed=1)

`call` is a ctypes.Structure laid out as the kernel's one argument; its pointers are addresses in this process, such as
`tensor.data_ptr()`.  A deadlock, a race or an access outside shared memory is an EmulatorError that names the line.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sparsify.cpu.native.build import BuildError, find_compiler
from sparsify.gpu.launch_spec import Build, Call

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(__file__).with_name("emulator")
CACHE = ROOT / ".pytest_cache" / "emulator"
CONVOLUTION = "cuda/fftconv.cu"

FLAGS = (
    *("-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off"),
    *("-U_FORTIFY_SOURCE", "-fno-omit-frame-pointer", "-Wno-unknown-pragmas", "-Wfatal-errors"),
    *("-DSPARSIFY_EMULATOR", f"-I{FOLDER}", f"-I{ROOT / 'cuda'}"),
)
PLAIN = ("-Og",)  # twice as quick to compile as -O2, and quick enough to run
SANITIZE = ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CLANG = ("-shared-libasan",)  # where the sanitizer is not a library by default

ORDERS = ("forward", "reversed", "random")
WIDTHS = {  # bytes of each access, in the order of `Kind` in emulator.h
    **{"load_chunk": 16, "load_entry": 16, "load_pair": 8, "load_word": 4, "load_short": 2},
    **{"store_chunk": 16, "store_word": 4, "store_short": 2, "shared_load": 16, "shared_store": 16},
}
TIMEOUT = 600  # seconds for a process with sanitizers
MESSAGE = 1024  # bytes that emulator.h writes at most


class EmulatorError(RuntimeError):
    """What a launch did wrong, in one sentence with file, line, thread and block."""


@dataclass(frozen=True)
class Access:
    """One kind of access to memory, summed over a launch.

    calls: of threads.  bytes: that they asked for.  instructions: of warps.  cost, ideal: 32-byte sectors of global
    memory, or wavefronts of shared memory, that these took, and that as many would take without a gap or a conflict.
    """

    calls: int
    bytes: int
    instructions: int
    cost: int
    ideal: int


@dataclass(frozen=True)
class Counters:
    """What one launch did: mma instructions of warps, barriers of blocks, and accesses by the name of their wrapper."""

    mma: int
    barriers: int
    access: Mapping[str, Access]

    @property
    def loaded(self) -> int:
        """Bytes from global memory."""
        return sum(access.bytes for name, access in self.access.items() if name.startswith("load"))

    @property
    def signals(self) -> int:
        """Bytes of signals, scratch and spectra; but not of signals that come in words of 4 bytes.

        Not of tables (`load_entry`, `load_pair`), which all rows share, nor of the words that say how to go about.
        """
        return sum(self.access[name].bytes for name in ("load_chunk", "load_short"))

    @property
    def stored(self) -> int:
        """Bytes to global memory."""
        return sum(access.bytes for name, access in self.access.items() if name.startswith("store"))

    @property
    def wavefronts(self) -> tuple[int, int]:
        """Of shared memory: those used, and those that no bank conflict would leave."""
        shared = self.access["shared_load"], self.access["shared_store"]
        return sum(access.cost for access in shared), sum(access.ideal for access in shared)


class Kernels:
    """The exported kernels of one compiled source."""

    def __init__(self, library: Path) -> None:
        self.library = library
        self._functions = ctypes.CDLL(str(library))

    def _function(self, name: str) -> Callable[..., int]:
        try:
            function: Callable[..., int] = getattr(self._functions, f"emulate_{name}")
        except AttributeError:
            raise ValueError(f"no kernel {name!r} in {self.library.name}; put EXPORT({name}, Call) behind it") from None
        return function

    def run(
        self,
        name: str,
        params: ctypes.Structure,
        grid: int | Sequence[int] = 1,
        threads: int = 32,
        shared_bytes: int = 0,
        order: str = "forward",
        seed: int = 0,
        watch_races: bool = True,
    ) -> Counters:
        """What one launch did, or EmulatorError; memory that `params` points to is written.

        grid: blocks along x, or along x, y, z.  threads: of a block.  shared_bytes: dynamic shared memory of a block.
        order: in which lanes, warps and blocks take turns, one of ORDERS; seed is of the random one.
        watch_races: False lets threads race in shared memory, to see what comes of it.
        """
        if order not in ORDERS:
            raise ValueError(f"no order {order!r}; known: {', '.join(ORDERS)}")
        x, y, z = (*((grid,) if isinstance(grid, int) else grid), 1, 1)[:3]
        counted = (ctypes.c_longlong * (2 + 4 * len(WIDTHS)))()
        message = ctypes.create_string_buffer(MESSAGE)
        status = self._function(name)(
            *(
                ctypes.byref(params),
                ctypes.c_long(ctypes.sizeof(params)),
                x,
                y,
                z,
                threads,
                ctypes.c_long(shared_bytes),
            ),
            *(ORDERS.index(order), ctypes.c_uint(seed), int(watch_races), counted, message),
        )
        if status:
            raise EmulatorError(f"{name}: {message.value.decode()}")
        rows = zip(*[iter(counted[2:])] * 4, strict=True)
        access = {
            kind: Access(calls, calls * width, *rest)
            for (kind, width), (calls, *rest) in zip(WIDTHS.items(), rows, strict=True)
        }
        return Counters(counted[0], counted[1], access)


@dataclass
class Emulator:
    """The emulator as `sparsify.gpu.backend.fftconv` launches kernels; done: what each launch did, in their order.

    order, seed: as for `Kernels.run`.  libraries: compiled ones by `named`, where compiling is not possible.
    """

    order: str = "forward"
    seed: int = 0
    libraries: Mapping[str, str] | None = None
    done: list[tuple[Build, Counters]] = field(default_factory=list)

    def __call__(self, made: Build, grid: tuple[int, int, int], call: Call) -> None:
        kernels = (
            build(CONVOLUTION, made.macros) if self.libraries is None else Kernels(Path(self.libraries[named(made)]))
        )
        counters = kernels.run(made.entry, call, grid, made.threads, made.shared_bytes, self.order, self.seed)
        self.done.append((made, counters))

    @property
    def mma(self) -> int:
        return sum(counters.mma for _, counters in self.done)


def named(made: Build) -> str:
    """A name that tells builds apart."""
    return repr(sorted(made.macros.items()))


def compile_all(builds: Iterable[Build], sanitize: bool = False) -> dict[str, str]:
    """Libraries of these builds by `named`, as many compiled at a time as there are processors."""
    _compiler()  # without one, skips here rather than in a thread
    macros = {named(made): made.macros for made in builds}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        libraries = pool.map(lambda one: compile_source(CONVOLUTION, one, sanitize), macros.values())
        return dict(zip(macros, map(str, libraries), strict=True))


def build(source: str | Path, macros: Mapping[str, object] | None = None) -> Kernels:
    """The kernels of a source, compiled with -D macros; without a compiler the test that asks is skipped."""
    return Kernels(compile_source(source, macros))


def compile_source(source: str | Path, macros: Mapping[str, object] | None = None, sanitize: bool = False) -> Path:
    """The library of a source, a path from the root of the repository or an absolute one, compiled if need be.

    macros: what -D defines, True for a bare name.  sanitize: with the address and undefined-behaviour sanitizers; only
    what `sanitized` runs can load it.
    """
    defined = tuple(f"-D{name}" if value is True else f"-D{name}={value}" for name, value in (macros or {}).items())
    return _compile(ROOT / source, defined, sanitize)


@functools.cache
def _compile(source: Path, defined: tuple[str, ...], sanitize: bool) -> Path:
    compiler = _compiler()
    flags = (*FLAGS, *(SANITIZE if sanitize else PLAIN), *defined)
    if sanitize:
        flags += CLANG if _is_clang() else ()
    # What the preprocessor leaves holds every header, and line numbers for the sanitizer: it names the library.
    text = _call([*compiler, *flags, "-E", "-x", "c++", str(source)])
    digest = hashlib.sha256(repr((flags, _version())).encode() + text.encode())
    folder = _cache()
    library = folder / f"{source.stem}-{digest.hexdigest()[:20]}.so"
    if not library.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / library.name
            _call([*compiler, *flags, "-shared", "-o", str(made), "-x", "c++", str(source)])
            made.replace(library)  # whole, whoever else compiles the same
    return library


def sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, in a process of its own with the address sanitizer; `emulation` can be imported."""
    env = {**os.environ, "LD_PRELOAD": _runtime(), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    words = [sys.executable, *arguments]
    # Clang's symbolizer can outlive who started it: it must neither hold a pipe that we wait for, nor stay.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(words, env=env, stdout=out, stderr=err, start_new_session=True)
        try:
            process.wait(TIMEOUT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, out.read(), err.read())


@functools.cache
def _runtime() -> str:
    """The sanitizer's library, which must be loaded before a Python without one."""
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD is how Linux loads sanitizers into Python")
    name = f"libclang_rt.asan-{os.uname().machine}.so" if _is_clang() else "libasan.so"
    path = _call([*_compiler(), f"-print-file-name={name}"]).strip()
    if not os.path.isabs(path):  # what is missing comes back as it went in
        pytest.skip(f"the compiler has no {name}")
    return path


@functools.cache
def _version() -> str:
    return _call([*_compiler(), "--version"])


def _is_clang() -> bool:
    return "clang" in _version()


def _compiler() -> list[str]:
    try:
        return find_compiler()
    except BuildError as error:
        pytest.skip(f"kernels cannot be emulated: {error}")


def _cache() -> Path:
    """A folder for compiled kernels that outlives this run where the checkout can be written."""
    for folder in (CACHE, Path(tempfile.gettempdir()) / f"sparsify-emulator-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    pytest.skip("no folder for compiled kernels can be written")


def _call(words: Sequence[str]) -> str:
    """What a compiler printed, or an EmulatorError with its complaint."""
    run = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if run.returncode:
        raise EmulatorError(f"{shlex.join(words)}\n{run.stderr.strip()}")
    return run.stdout
