"""GPU kernels: compiled on first use, kept on disk, loaded into torch's context, launched on torch's streams.

Knows no mathematics: a kernel is a source file in cuda/, the name of its entry, and macros.  NVRTC makes machine code
for one architecture (a cubin), so no compiler and no CUDA headers are needed, and no driver to compile.  NVRTC and
cuda.bindings come with every torch that has CUDA; elsewhere `pip install cuda-bindings nvidia-cuda-nvrtc` brings them.

SPARSIFY_GPU=0 in the environment switches the GPU kernels off, at any time.  Cubins lie in ~/.cache/sparsify/cubin;
SPARSIFY_CACHE=FOLDER (or XDG_CACHE_HOME) moves them to FOLDER/cubin (or XDG_CACHE_HOME/sparsify/cubin).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sparsify.storage.files import first_line, readable_size, write_whole

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a")  # what the kernels are tested to compile for
OLDEST = (8, 0)  # compute capability: before Ampere there is no bfloat16 and no m16n8k16

OPTIONS = (
    *("--std=c++17", "--device-as-default-execution-space"),  # there is no host: functions need no __device__
    "--ptxas-options=-v",  # the log tells registers and spills
)
CACHES_SINCE = (12, 9)  # NVRTC keeps what it compiled in the driver's cache, too, and a hit may come without a log
SCHEMA = 1  # of a cache entry; part of its name

INSTALL = "pip install cuda-bindings nvidia-cuda-nvrtc"
BESIDE = Path(__file__).resolve().parent.parent
FOLDER = BESIDE / "cuda" if (BESIDE / "cuda").is_dir() else BESIDE.parent / "cuda"  # installed, or a checkout


class CompileError(RuntimeError):
    """Why a source does not compile, in one sentence; the whole log is a note on it."""


@dataclass(frozen=True)
class Kernel:
    """An extern "C" entry of `source`, compiled with `macros`, each "NAME=VALUE"; headers are the .cuh files beside."""

    source: str
    entry: str
    macros: tuple[str, ...] = ()
    folder: Path = FOLDER


@dataclass(frozen=True)
class Resources:
    """What one entry takes: registers and bytes a thread, and static shared bytes a block."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Binary:
    """Machine code of every entry of a source, and what the kernel's own entry takes (unknown of PTX)."""

    image: bytes  # a cubin, or PTX where arch is compute_..
    arch: str
    resources: Resources | None
    seconds: float  # that the compiler took
    log: str


# --- what is here ----------------------------------------------------------------------------------------------------


def available(device: torch.device | int | None = None) -> bool:
    """Whether kernels can be compiled, loaded and launched on a device, by default the current one.  Never raises."""
    return why_not(device) is None


def why_not(device: torch.device | int | None = None) -> str | None:
    """None, or what is missing and what to do, in one sentence.  Never raises; quick after the first call."""
    if os.environ.get("SPARSIFY_GPU") == "0":
        return "switched off: SPARSIFY_GPU=0"
    return no_device() or compile_why_not() or no_driver() or unfit(ordinal(device))


def compile_available() -> bool:
    """Whether kernels can be compiled here, for whatever device."""
    return compile_why_not() is None


@cache
def compile_why_not() -> str | None:
    """None, or what the compiler lacks and what to do, in one sentence.  Never raises."""
    try:
        from cuda.bindings import nvrtc
    except Exception as error:
        return f"cuda.bindings cannot be imported ({first_line(error)}); {INSTALL}"
    try:
        passed(nvrtc.nvrtcVersion())
    except Exception as error:
        return f"cuda.bindings finds no NVRTC ({first_line(error)}); {INSTALL}"
    return None


@cache
def no_device() -> str | None:
    if torch.version.hip is not None:
        return f"they are for NVIDIA's, and torch {torch.__version__} is built for AMD's (ROCm)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA; install one with CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device; see whether nvidia-smi does"
    return None


@cache
def no_driver() -> str | None:
    """None, or why NVRTC's machine code cannot be loaded here.  For where `compile_why_not` has no objection."""
    try:
        from cuda.bindings import driver

        passed(driver.cuInit(0))
        runs = passed(driver.cuDriverGetVersion())
    except Exception as error:
        return f"the CUDA driver cannot be used ({first_line(error)}); install NVIDIA's, or mend it"
    major, minor = nvrtc_version()
    if runs // 1000 < major:
        return (
            f"the driver runs CUDA {runs // 1000}.{runs % 1000 // 10} and NVRTC compiles for {major}.{minor}; "
            f"update the driver, or install an NVRTC of its version"
        )
    return None


@cache
def unfit(index: int) -> str | None:
    try:
        major, minor = torch.cuda.get_device_capability(index)
        name = torch.cuda.get_device_name(index)
    except Exception as error:
        return f"torch cannot use CUDA device {index} ({first_line(error)}); see whether nvidia-smi can"
    if (major, minor) < OLDEST:
        return f"{name} has compute capability {major}.{minor}; the kernels need {OLDEST[0]}.{OLDEST[1]} or newer"
    return None


def ordinal(device: torch.device | int | None) -> int:
    """Index of a CUDA device; without one of its own, that of the current device."""
    index = device.index if isinstance(device, torch.device) else device
    return torch.cuda.current_device() if index is None else index


def passed(result: Sequence[Any]) -> Any:
    """The value that a call of cuda.bindings came back with, None where it has none; or a RuntimeError."""
    error, *values = result
    if int(error):
        raise RuntimeError(f"{getattr(error, 'name', error)} ({int(error)})")
    return values[0] if values else None


def describe() -> list[tuple[str, bool, str]]:
    """What a doctor asks: kernels, compiler and cache, each whether it is of use and what it is or why not."""
    try:
        compiler = compile_why_not()
        version = "" if compiler else ".".join(map(str, nvrtc_version()))
        folder, size = cache_folder(), sum(path.stat().st_size for path in cached())
        found = f"{len(cached())} kernels, {readable_size(size)} in {folder}"
        kept = found if folder else "no home folder to keep them in"
        reason = why_not()
        kernels = reason or f"{architecture()}, driver for CUDA {driver_version()}"
    except Exception as error:  # whoever asks a doctor wants an answer
        return [("gpu kernels", False, first_line(error))]
    return [
        ("gpu kernels", reason is None, kernels),
        ("gpu compiler", compiler is None, compiler or f"NVRTC {version}"),
        ("gpu cache", folder is not None, kept),
    ]


# --- compiling -------------------------------------------------------------------------------------------------------


@cache
def nvrtc_version() -> tuple[int, int]:
    from cuda.bindings import nvrtc

    error, major, minor = nvrtc.nvrtcVersion()
    passed([error])
    return major, minor


def driver_version() -> str:
    from cuda.bindings import driver

    version = passed(driver.cuDriverGetVersion())
    return f"{version // 1000}.{version % 1000 // 10}"


def architecture(device: torch.device | int | None = None) -> str:
    """What to compile for so that it runs on a device."""
    from cuda.bindings import nvrtc

    return best_architecture(torch.cuda.get_device_capability(ordinal(device)), passed(nvrtc.nvrtcGetSupportedArchs()))


def best_architecture(capability: tuple[int, int], supported: Sequence[int]) -> str:
    """The architecture itself, the nearest older one whose cubins run on it, or PTX that the driver compiles.

    supported: what NVRTC knows, e.g. [80, 90, 100].  Cubins run on later cards of the same major number, unless they
    use what only one card has (the suffix a).  PTX of the newest older one is the last resort, for cards newer than
    NVRTC: it starts slowly, and fails if the driver is older than NVRTC.
    """
    card = 10 * capability[0] + capability[1]
    if card in supported:
        return f"sm_{card}a" if card >= 90 else f"sm_{card}"
    older = [arch for arch in supported if arch < card]
    if not older:
        raise ValueError(
            f"NVRTC compiles for {min(supported) / 10} or newer, the card has {card / 10}; use a newer one"
        )
    return f"sm_{max(older)}" if max(older) // 10 == capability[0] else f"compute_{max(older)}"


def options(kernel: Kernel, arch: str) -> list[str]:
    own_cache = ["--no-cache"] if nvrtc_version() >= CACHES_SINCE else []
    return [f"--gpu-architecture={arch}", *OPTIONS, *own_cache, *(f"-D{macro}" for macro in kernel.macros)]


def sources(kernel: Kernel) -> dict[str, bytes]:
    """The kernel's source and all headers beside it, by name."""
    path = kernel.folder / kernel.source
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in kernel.folder.glob("*.cu"))) or "none"
        raise FileNotFoundError(f"no kernel source {kernel.source} in {kernel.folder}; it has: {there}")
    return {p.name: p.read_bytes() for p in (path, *sorted(kernel.folder.glob("*.cuh")))}


def compile(kernel: Kernel, arch: str) -> Binary:
    """The kernel compiled anew for "sm_90a" or the like; a CompileError where it does not compile.

    No device is needed, and no driver.  `binary` looks for it on disk first.
    """
    from cuda.bindings import nvrtc

    name, *headers = files = sources(kernel)
    began = time.perf_counter()
    program = passed(
        nvrtc.nvrtcCreateProgram(
            files[name],
            name.encode(),
            len(headers),
            [files[header] for header in headers],
            [header.encode() for header in headers],
        )
    )
    try:
        words = [word.encode() for word in options(kernel, arch)]
        (error,) = nvrtc.nvrtcCompileProgram(program, len(words), words)
        log = fetched(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
        log = log.rstrip("\0 \n")
        if int(error):
            raise failure(kernel, arch, log or f"{error.name} ({int(error)})")
        if arch.startswith("compute_"):
            image = fetched(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)
        else:
            image = fetched(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    if kernel.entry not in (there := entries_of(image)):
        known = ", ".join(sorted(there)) or "none"
        raise failure(kernel, arch, f'error: it has no entry {kernel.entry}; extern "C" entries: {known}')
    return Binary(image, arch, resources(log).get(kernel.entry), time.perf_counter() - began, log)


def fetched(size_of: Any, get: Any, program: Any) -> bytes:
    """What NVRTC writes into a buffer of the size it names."""
    buffer = bytes(passed(size_of(program)))
    passed(get(program, buffer))
    return buffer


def entries_of(image: bytes) -> set[str]:
    """Names of the entries in a cubin or in PTX."""
    if image.startswith(b"\x7fELF"):  # each has a section with its constants, parameters among them
        names = re.findall(rb"\.nv\.constant0\.(\w+)\0", image)
    else:
        names = re.findall(rb"\.entry\s+(\w+)", image)
    return {name.decode() for name in names}


def failure(kernel: Kernel, arch: str, log: str) -> CompileError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"\b(error|fatal)\b", line)), lines[0])
    macros = " ".join(f"-D{macro}" for macro in kernel.macros) or "no macros"
    error = CompileError(f"{kernel.source} does not compile for {arch} with {macros}: {first}")
    error.add_note(log)
    return error


REPORT = re.compile(  # of ptxas -v; what an entry does not use is not named
    r"Compiling entry function '(?P<entry>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def resources(log: str) -> dict[str, Resources]:
    """What every entry takes, as ptxas says."""
    found = {}
    for report in REPORT.finditer(log):
        shared = re.search(r"(\d+)(?:\+\d+)? bytes smem", report["rest"])
        found[report["entry"]] = Resources(
            registers=int(report["registers"]),
            spill_stores=int(report["stores"]),
            spill_loads=int(report["loads"]),
            stack=int(report["stack"]),
            shared=int(shared[1]) if shared else 0,
        )
    return found


# --- kept on disk ----------------------------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """Where cubins are kept; None where not even the home folder is known."""
    if folder := os.environ.get("SPARSIFY_CACHE"):
        return Path(folder).expanduser() / "cubin"
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "sparsify" / "cubin"
    try:
        return Path.home() / ".cache" / "sparsify" / "cubin"
    except RuntimeError:
        return None


def key(kernel: Kernel, arch: str) -> str:
    """Names what a cubin is made of: sources, options, compiler.  Entries of one source share a cubin."""
    total = hashlib.sha256(repr((SCHEMA, nvrtc_version(), kernel.source, options(kernel, arch))).encode())
    for name, text in sources(kernel).items():
        total.update(f"\n{name} {hashlib.sha256(text).hexdigest()}".encode())
    return total.hexdigest()


def cached() -> list[Path]:
    folder = cache_folder()
    return sorted(folder.glob("*.bin")) if folder else []


def binary(kernel: Kernel, arch: str) -> Binary:
    """The kernel as it lies on disk, else compiled and put there.  No device is needed, and no driver."""
    folder = cache_folder()
    path = folder / f"{key(kernel, arch)}.bin" if folder else None
    found = read(path) if path else None
    if found:
        about, image = found
        if kernel.entry in entries_of(image):  # it was put there for another entry, perhaps
            taken = resources(about["log"]).get(kernel.entry)
            return Binary(image, arch, taken, about["seconds"], about["log"])
    made = compile(kernel, arch)
    if path:
        write(path, kernel, made)
    return made


def read(path: Path) -> tuple[dict[str, Any], bytes] | None:
    """A cache entry: a checksum, a line of JSON and the image; None where there is none, or a damaged one."""
    try:
        total, rest = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if total.decode(errors="replace") != hashlib.sha256(rest).hexdigest():
        return None
    line, image = rest.split(b"\n", 1)
    return json.loads(line), image


def write(path: Path, kernel: Kernel, made: Binary) -> None:
    """Beside, then renamed: nobody sees half an entry, and whoever comes last with the same one wins."""
    about = {
        "source": kernel.source,
        "macros": kernel.macros,
        "arch": made.arch,
        "nvrtc": nvrtc_version(),
        "seconds": made.seconds,
        "log": made.log,
    }
    rest = json.dumps(about).encode() + b"\n" + made.image
    try:
        write_whole(path, hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
    except OSError as error:
        warn_unwritable(path.parent, error)


_warned = threading.Lock()  # taken by the one thread that warns, and never given back


def warn_unwritable(folder: Path, error: OSError) -> None:
    """One RuntimeWarning in the life of the process."""
    if _warned.acquire(blocking=False):
        warnings.warn(
            f"compiled GPU kernels cannot be kept in {folder} ({error.strerror}), so every process compiles them anew; "
            f"set SPARSIFY_CACHE to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )


def entries() -> list[dict[str, Any]]:
    """What lies in the cache, a row for each entry of each cubin: source, entry, macros, arch, what it takes, bytes."""
    rows = []
    for about, image in filter(None, map(read, cached())):
        head = {name: about[name] for name in ("source", "macros", "arch", "nvrtc", "seconds")}
        taken = resources(about["log"])
        for name in sorted(entries_of(image)):
            rows.append({**head, "entry": name, **(vars(taken[name]) if name in taken else {}), "bytes": len(image)})
    return rows


# --- on a device -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Function:
    """A kernel ready on one device.  Whoever launches often keeps it, rather than ask `load` again."""

    kernel: Kernel
    device: int
    handle: Any  # CUfunction
    resources: Resources | None
    shared_limit: int  # dynamic shared bytes that a launch may ask for
    params_bytes: int | None  # size of the one parameter, where the driver tells


_loaded: dict[tuple[Kernel, int], Function] = {}
_loading = threading.Lock()  # two threads that want one kernel compile it once


def load(kernel: Kernel, device: torch.device | int | None = None) -> Function:
    """The kernel on a device, compiled if it lies nowhere yet; the same object for the same kernel and device.

    Not while a CUDA graph is captured: load first.  Ask `available` before.
    """
    index = ordinal(device)
    with _loading:
        if (kernel, index) not in _loaded:
            torch.cuda.init()
            made = binary(kernel, architecture(index))
            with in_context(index):
                _loaded[kernel, index] = loaded(kernel, index, made)
        return _loaded[kernel, index]


def loaded(kernel: Kernel, index: int, made: Binary) -> Function:
    """A module, loaded into the current context and never unloaded, and its function."""
    from cuda.bindings import driver

    attribute = driver.CUfunction_attribute
    try:
        module = passed(driver.cuModuleLoadData(made.image + b"\0"))  # PTX is text and ends in a zero
        handle = passed(driver.cuModuleGetFunction(module, kernel.entry.encode()))
        static = passed(driver.cuFuncGetAttribute(attribute.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, handle))
        whole = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        limit = passed(driver.cuDeviceGetAttribute(whole, passed(driver.cuDeviceGet(index)))) - static
        if limit > 48 << 10:  # without a word, 48 KB is all that a block may ask for
            maximum = attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            passed(driver.cuFuncSetAttribute(handle, maximum, limit))
    except RuntimeError as error:
        raise RuntimeError(
            f"{kernel.entry} of {kernel.source} for {made.arch} cannot be loaded on CUDA device {index}: {error}"
        ) from error
    return Function(kernel, index, handle, made.resources, limit, params_bytes(handle))


def prefer_shared(function: Function, size: int) -> None:
    """Ask that a multiprocessor keep at least `size` bytes of its fast memory as shared memory, not as L1 cache."""
    from cuda.bindings import driver

    whole = driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    most = passed(driver.cuDeviceGetAttribute(whole, passed(driver.cuDeviceGet(function.device))))
    carveout = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT  # per cent
    with in_context(function.device):
        passed(driver.cuFuncSetAttribute(function.handle, carveout, min(100, -(-100 * size // most))))


def params_bytes(handle: Any) -> int | None:
    """Size of a function's only parameter; None where the driver or cuda.bindings cannot tell yet (before 12.4)."""
    from cuda.bindings import driver

    try:
        error, _, size = driver.cuFuncGetParamInfo(handle, 0)
    except (AttributeError, RuntimeError):
        return None
    return None if int(error) else size


@cache
def primary(index: int) -> Any:
    """The context that torch uses on a device, never released."""
    from cuda.bindings import driver

    passed(driver.cuInit(0))
    return passed(driver.cuDevicePrimaryCtxRetain(passed(driver.cuDeviceGet(index))))


@contextmanager
def in_context(index: int) -> Iterator[None]:
    """Within, a device's context is the current one of this thread."""
    from cuda.bindings import driver

    passed(driver.cuCtxPushCurrent(primary(index)))
    try:
        yield
    finally:
        driver.cuCtxPopCurrent()


ELSEWHERE = {201, 400}  # CUDA_ERROR_INVALID_CONTEXT, _INVALID_HANDLE: this thread has no context, or another device's


def launch(
    function: Function,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    params: ctypes.Structure,
    stream: int | None = None,
) -> None:
    """Run function<<<grid, threads, shared_bytes, stream>>>(params), params by value; returns before it has run.

    stream: a raw handle, `torch.cuda.current_stream().cuda_stream`; None takes torch's current one of the device.
    Waits for nothing and allocates nothing on the device, so it can be captured in a CUDA graph, which keeps the params
    that it saw.  Params may change or die as soon as this returns; what they point to may not before the kernel ran.
    """
    if function.params_bytes not in (None, ctypes.sizeof(params)):
        raise TypeError(
            f"{function.kernel.entry} takes a struct of {function.params_bytes} bytes, got {type(params).__name__} of "
            f"{ctypes.sizeof(params)}; its fields must be those of {function.kernel.source}, in that order"
        )
    stream = raw_stream(function.device) if stream is None else stream
    pointer = ctypes.c_void_p(ctypes.addressof(params))  # an array of one: where the only parameter lies
    arguments = (function.handle, *grid, threads, 1, 1, shared_bytes, stream, ctypes.addressof(pointer), 0)
    (error,) = launcher()(*arguments)
    if int(error) in ELSEWHERE:  # nothing ran
        with in_context(function.device):
            (error,) = launcher()(*arguments)
    if int(error):
        raise RuntimeError(
            f"the launch of {function.kernel.entry} on CUDA device {function.device} with grid {grid}, {threads} "
            f"threads and {shared_bytes} of at most {function.shared_limit} shared bytes came back with "
            f"{error.name} ({int(error)}), its own or that of work before it"
        )


@cache
def launcher() -> Any:
    from cuda.bindings import driver

    return driver.cuLaunchKernel


def raw_stream(index: int) -> int:
    """Handle of torch's current stream on a device."""
    quick = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # what torch's own compiled code calls; no object
    return quick(index) if quick else torch.cuda.current_stream(index).cuda_stream
