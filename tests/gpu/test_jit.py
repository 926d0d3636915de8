"""Kernels are compiled, kept and launched: with toy sources, as far as this machine can go."""

import ctypes
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import compile_gate
import pytest
import torch
from helpers import ROOT, assert_close

from sparsify.gpu import jit

HEADER = """
struct Call { const float* x; float* y; float a; int n; };
extern __shared__ float memory[];
"""
SOURCE = """
#include "toy.cuh"

// y = SCALE a x + y
extern "C" __global__ void axpy(Call c) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < c.n) c.y[i] += SCALE * c.a * c.x[i];
}

// y = x backwards, all of it through shared memory at once; one block
extern "C" __global__ void backwards(Call c) {
    for (int i = threadIdx.x; i < c.n; i += blockDim.x) memory[i] = c.x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < c.n; i += blockDim.x) c.y[i] = memory[c.n - 1 - i];
}
"""
GATED = """
extern "C" __global__ void products(float* y, const unsigned* x) {
    float d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 3; i++)
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                     "{%0,%1,%2,%3}, {%4,%4,%4,%4}, {%4,%4}, {%0,%1,%2,%3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(x[i]));
    y[threadIdx.x] = d[0] + d[1] + d[2] + d[3];
}

extern "C" __global__ void indexed(float* y, const int* at) {
    __shared__ float all[100];
    float mine[64];
    for (int i = 0; i < 64; i++) mine[i] = y[i];
    for (int i = 0; i < 64; i++) mine[at[i]] += mine[i];
    all[threadIdx.x] = mine[at[0]];
    __syncthreads();
    y[threadIdx.x] = all[at[0]];
}

extern "C" __global__ void __launch_bounds__(1024) crowded(float* y, const float* x) {
    float mine[128];
    for (int i = 0; i < 128; i++) mine[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < 128; i++) mine[i] = mine[i] * mine[(i + 1) % 128] + mine[(i + 77) % 128];
    for (int i = 0; i < 128; i++) y[i * 1024 + threadIdx.x] = mine[i];
}
"""


class Call(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("a", ctypes.c_float), ("n", ctypes.c_int))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Nobody's home folder fills up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSIFY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cubin"


@pytest.fixture
def toy(tmp_path):
    """`axpy` of a folder with one source and one header."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "toy.cuh").write_text(HEADER)
    (folder / "toy.cu").write_text(SOURCE)
    (folder / "gated.cu").write_text(GATED)
    return jit.Kernel("toy.cu", "axpy", ("SCALE=2",), folder)


ASKED = ("compile_why_not", "no_device", "no_driver", "unfit", "nvrtc_version")


@pytest.fixture
def asked_anew():
    """What is here is asked once in a process; here it changes."""
    for name in ASKED:
        getattr(jit, name).cache_clear()
    yield
    for name in ASKED:
        getattr(jit, name).cache_clear()


compiler = pytest.mark.skipif(not jit.compile_available(), reason=str(jit.compile_why_not()))


# --- compiling -------------------------------------------------------------------------------------------------------


@compiler
@pytest.mark.parametrize("arch", jit.ARCHITECTURES)
def test_compiles_for_every_architecture(toy, arch):
    made = jit.compile(toy, arch)
    assert made.image.startswith(b"\x7fELF") and made.arch == arch
    assert 0 < made.resources.registers <= 32
    assert made.resources == replace(made.resources, spill_stores=0, spill_loads=0, stack=0, shared=0)
    assert jit.entries_of(made.image) == {"axpy", "backwards"}


@compiler
def test_ptx_as_the_last_resort(toy):
    made = jit.compile(toy, "compute_80")
    assert b".target sm_80" in made.image and made.resources is None
    assert jit.entries_of(made.image) == {"axpy", "backwards"}


@pytest.mark.parametrize(
    ("capability", "supported", "arch"),
    [
        ((8, 0), [75, 80, 86, 90], "sm_80"),
        ((9, 0), [80, 90, 100], "sm_90a"),
        ((8, 9), [75, 80, 86], "sm_86"),  # its cubins run on later cards of the same major number
        ((10, 3), [90, 100], "sm_100"),  # but not what only the 10.0 has
        ((10, 0), [80, 90], "compute_90"),
        ((13, 1), [90, 100, 120, 121], "compute_121"),
    ],
)
def test_architecture_of_a_card(capability, supported, arch):
    assert jit.best_architecture(capability, supported) == arch


def test_card_older_than_the_compiler():
    with pytest.raises(ValueError, match=r"compiles for 8\.0 or newer, the card has 7\.5"):
        jit.best_architecture((7, 5), [80, 90])


@compiler
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"macros": ()}, r'^toy\.cu does not compile for sm_90a with no macros: toy\.cu\(7\): error: .*"SCALE"'),
        ({"macros": ("SCALE=(", "N=1")}, r"with -DSCALE=\( -DN=1: toy\.cu\(7\): error: "),
        ({"entry": "axpby"}, r"no entry axpby; .*: axpy, backwards$"),
    ],
)
def test_what_does_not_compile(toy, change, says):
    with pytest.raises(jit.CompileError, match=says):
        jit.compile(replace(toy, **change), "sm_90a")


@compiler
def test_unknown_architecture(toy):
    with pytest.raises(jit.CompileError, match=r"for sm_999 .*gpu-architecture"):
        jit.compile(toy, "sm_999")


@compiler
def test_missing_source(toy):
    with pytest.raises(FileNotFoundError, match=r"no kernel source toi\.cu in .*: gated\.cu, toy\.cu$"):
        jit.compile(replace(toy, source="toi.cu"), "sm_90a")


def test_kernel_folder_is_ours():
    """cuda/ beside sparsify/ in a checkout, sparsify/cuda in an installation; never NVIDIA's."""
    assert (jit.FOLDER / "README.md").read_text().startswith("Kernel sources")


# --- the gate --------------------------------------------------------------------------------------------------------


@compiler
@pytest.mark.parametrize("arch", jit.ARCHITECTURES)
def test_the_gate_sees_what_a_kernel_takes(toy, arch):
    """A clean kernel passes; one that indexes its registers, and one that wants too many, do not."""
    clean, indexed, crowded = (
        compile_gate.taken(jit.Kernel("gated.cu", entry, (), toy.folder), arch)
        for entry in ("products", "indexed", "crowded")
    )
    assert (clean.mmas, clean.local, clean.spills, clean.stack, clean.shared) == (3, 0, 0, 0, 0)
    assert indexed.local > 0 and indexed.stack >= 4 * 64 and indexed.shared >= 400 and indexed.mmas == 0
    assert crowded.spills > 0 and crowded.local > 0 and crowded.registers <= 64


def test_reports_of_ptxas():
    """Older and newer words, entries without shared memory and with static and dynamic parts."""
    log = """
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 38 registers, 512 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""
    assert jit.resources(log) == {
        "first": jit.Resources(38, 4, 8, 16, 512),
        "second": jit.Resources(255, 0, 0, 0, 0),
    }


# --- the cache -------------------------------------------------------------------------------------------------------


@compiler
def test_compiled_once(toy, cache_of_its_own, monkeypatch):
    made = jit.binary(toy, "sm_90a")
    monkeypatch.setattr(jit, "compile", None)  # whoever calls it fails
    assert jit.binary(toy, "sm_90a") == made
    other = jit.binary(replace(toy, entry="backwards"), "sm_90a")
    assert other.image == made.image and other.resources != made.resources
    assert len(list(cache_of_its_own.iterdir())) == 1
    rows = jit.entries()
    assert {row["entry"]: row["registers"] for row in rows} == {
        "axpy": made.resources.registers,
        "backwards": other.resources.registers,
    }
    assert all(row["arch"] == "sm_90a" and row["macros"] == ["SCALE=2"] for row in rows)


@compiler
def test_what_a_cubin_is_made_of(toy, monkeypatch):
    names = [
        jit.key(toy, "sm_90a"),
        jit.key(toy, "sm_80"),
        jit.key(replace(toy, macros=("SCALE=3",)), "sm_90a"),
        jit.key(replace(toy, source="gated.cu"), "sm_90a"),
    ]
    assert jit.key(replace(toy, entry="backwards"), "sm_90a") == names[0]
    for name in ("toy.cuh", "toy.cu"):
        (toy.folder / name).write_text((toy.folder / name).read_text() + "// changed\n")
        names.append(jit.key(toy, "sm_90a"))
    monkeypatch.setattr(jit, "nvrtc_version", lambda: (12, 8))
    names.append(jit.key(toy, "sm_90a"))
    assert len(set(names)) == len(names)


@compiler
@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: b"",
        lambda entry: entry[:-1],
        lambda entry: entry[:-100] + b"!" + entry[-99:],
        lambda entry: entry.replace(b"registers", b"register!"),
        lambda entry: entry[entry.index(b"\n") + 1 :],
        lambda entry: bytes(range(256)),
    ],
)
def test_a_damaged_entry_is_made_anew(toy, cache_of_its_own, damage):
    made = jit.binary(toy, "sm_90a")
    (path,) = cache_of_its_own.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole and jit.entries() == []
    assert jit.binary(toy, "sm_90a").image == made.image
    assert {row["arch"] for row in jit.entries()} == {"sm_90a"}


@compiler
def test_without_a_cache(toy, tmp_path, monkeypatch):
    """One warning, and everything works."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "file"))  # root may write into any folder, not below a file
    monkeypatch.setattr(jit, "_warned", threading.Lock())
    with pytest.warns(RuntimeWarning, match=r"cannot be kept in .*file/cubin.*set SPARSIFY_CACHE"):
        assert jit.binary(toy, "sm_90a").image
    assert jit.binary(toy, "sm_90a").image  # a second warning would be an error
    assert jit.entries() == []


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SPARSIFY_CACHE")
    assert jit.cache_folder() == Path("/home/ada/.cache/sparsify/cubin")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert jit.cache_folder() == Path("/caches/sparsify/cubin")
    monkeypatch.setenv("SPARSIFY_CACHE", "/mine")
    assert jit.cache_folder() == Path("/mine/cubin")


@compiler
def test_processes_at_once(toy, cache_of_its_own):
    code = (
        "import sys, pathlib; from sparsify.gpu import jit; folder = pathlib.Path(sys.argv[1])\n"
        "for scale in range(8):\n"
        "    assert jit.binary(jit.Kernel('toy.cu', 'axpy', (f'SCALE={scale}',), folder), 'sm_80').image"
    )
    command = [sys.executable, "-c", code, str(toy.folder)]
    runs = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(run.communicate()[1], run.returncode) for run in runs] == [("", 0)] * 2
    assert [path.suffix for path in cache_of_its_own.iterdir()] == [".bin"] * 8
    assert len(jit.entries()) == 2 * 8  # none of them damaged


# --- what is missing -------------------------------------------------------------------------------------------------


def test_switched_off(monkeypatch):
    monkeypatch.setenv("SPARSIFY_GPU", "0")
    assert jit.why_not() == "switched off: SPARSIFY_GPU=0" and not jit.available()
    assert jit.describe()[0] == ("gpu kernels", False, "switched off: SPARSIFY_GPU=0")


def test_without_bindings(asked_anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert not jit.compile_available()
    assert jit.compile_why_not().endswith("; pip install cuda-bindings nvidia-cuda-nvrtc")
    assert jit.compile_why_not().startswith("cuda.bindings cannot be imported (")
    assert [ok for name, ok, _ in jit.describe() if name == "gpu compiler"] == [False]


def refused(*_):
    raise RuntimeError("Failed to dlopen it.\nSearched in vain")


@pytest.fixture
def a_device(asked_anew, monkeypatch):
    """A machine on which torch has a new CUDA device."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "a card")


@compiler
@pytest.mark.parametrize(
    ("owner", "changes", "says"),
    [
        (torch.version, {"cuda": None}, "is built without CUDA; install one with CUDA"),
        (torch.cuda, {"is_available": lambda: False}, "finds no CUDA device; see whether nvidia-smi does"),
        ("nvrtc", {"nvrtcVersion": refused}, r"^cuda.bindings finds no NVRTC \(Failed to dlopen it\); pip install "),
        ("driver", {"cuInit": refused}, r"^the CUDA driver cannot be used \(Failed to dlopen it\); "),
        ("driver", {"cuInit": lambda _: (3,)}, r"^the CUDA driver cannot be used \(3 \(3\)\); "),
        (
            "driver",
            {"cuInit": lambda _: (0,), "cuDriverGetVersion": lambda: (0, 11080)},
            r"^the driver runs CUDA 11\.8 and NVRTC compiles for 1\d\.\d; update the driver",
        ),
        (torch.cuda, {"get_device_capability": lambda index: (7, 5)}, r"a card has compute capability 7\.5; .* 8\.0"),
        (torch.cuda, {"get_device_capability": refused}, r"torch cannot use CUDA device 0 \(Failed to dlopen it\)"),
        (torch.cuda, {}, None),
    ],
)
def test_what_is_missing(a_device, monkeypatch, owner, changes, says):
    from cuda.bindings import driver
    from cuda.bindings import nvrtc as bindings

    owner = {"nvrtc": bindings, "driver": driver}.get(owner, owner) if isinstance(owner, str) else owner
    monkeypatch.setattr(driver, "cuInit", lambda _: (0,))
    monkeypatch.setattr(driver, "cuDriverGetVersion", lambda: (0, 99000))
    for name, value in changes.items():
        monkeypatch.setattr(owner, name, value)
    if says is None:
        assert jit.why_not() is None and jit.available()
    else:
        assert not jit.available()
        with pytest.raises(RuntimeError, match=says):
            raise RuntimeError(jit.why_not())


@compiler
@pytest.mark.parametrize("folder", [ROOT, ROOT.parent], ids=["checkout", "elsewhere"])
def test_our_folder_named_cuda_hides_nothing(folder):
    """NVIDIA's cuda is a namespace package, so the two merge; a Python file in ours would end that."""
    code = "import cuda; from cuda.bindings import driver, nvrtc"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_our_folder_named_cuda_pretends_nothing():
    """Without NVIDIA's package, what is missing is what an import says."""
    code = "import cuda.bindings"
    run = subprocess.run([sys.executable, "-S", "-E", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stderr.strip().endswith("No module named 'cuda.bindings'")


# --- launching -------------------------------------------------------------------------------------------------------


class Launches(list):
    """Stands for cuLaunchKernel: keeps what it would have passed on, and comes back with `answers`, then success."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = [*answers]

    def __call__(self, handle, gx, gy, gz, bx, by, bz, shared_bytes, stream, pointers, extra):
        where = ctypes.c_void_p.from_address(pointers).value
        params = Call.from_buffer_copy(ctypes.string_at(where, ctypes.sizeof(Call)))
        self.append((handle, (gx, gy, gz), (bx, by, bz), shared_bytes, stream, extra, params))
        return (self.answers.pop(0) if self.answers else 0,)


@pytest.fixture
def function():
    return jit.Function(jit.Kernel("toy.cu", "axpy"), 0, "handle", None, 1000, ctypes.sizeof(Call))


def test_what_a_launch_passes_on(function, monkeypatch):
    launches = Launches()
    monkeypatch.setattr(jit, "launcher", lambda: launches)
    params = Call(1 << 40, 2, 0.5, -7)
    jit.launch(function, (3, 2, 1), 64, 99, params, 77)
    params.a = 8.0
    jit.launch(function, (3, 2, 1), 64, 99, params, 77)
    assert launches[0][:-1] == ("handle", (3, 2, 1), (64, 1, 1), 99, 77, 0)
    fields = [[getattr(sent[-1], name) for name, _ in Call._fields_] for sent in launches]
    assert fields == [[1 << 40, 2, 0.5, -7], [1 << 40, 2, 8.0, -7]]


@pytest.mark.parametrize("answer", [201, 400])
def test_a_thread_without_a_context_gets_one(function, monkeypatch, answer):
    """Nothing ran, so once more in the context of the device."""
    launches, entered = Launches(answer), []
    monkeypatch.setattr(jit, "launcher", lambda: launches)
    monkeypatch.setattr(jit, "in_context", lambda index: entered.append(index) or nullcontext())
    jit.launch(function, (1, 1, 1), 32, 0, Call(), 0)
    assert len(launches) == 2 and entered == [0]


def test_a_launch_that_fails(function, monkeypatch):
    class Error(int):
        name = "CUDA_ERROR_INVALID_VALUE"

    monkeypatch.setattr(jit, "launcher", lambda: Launches(Error(1)))
    with pytest.raises(
        RuntimeError, match=r"axpy on CUDA device 0 .*2000 of at most 1000 shared .*INVALID_VALUE \(1\)"
    ):
        jit.launch(function, (1, 1, 1), 32, 2000, Call(), 0)


def test_another_struct_is_refused(function):
    class Longer(ctypes.Structure):
        _fields_ = (*Call._fields_, ("more", ctypes.c_int))

    with pytest.raises(TypeError, match="axpy takes a struct of 24 bytes, got Longer of 32"):
        jit.launch(function, (1, 1, 1), 32, 0, Longer(), 0)


@pytest.fixture
def signals():
    """x, y and their place in a Call."""
    if reason := jit.why_not():
        pytest.skip(reason)
    x, y = torch.randn(2, 25_000, device="cuda")
    return x, y, Call(x.data_ptr(), y.data_ptr(), 0.5, x.numel())


def blocks(x):
    return (-(-x.numel() // 256), 1, 1)


@pytest.mark.gpu
def test_launch(toy, signals):
    x, y, call = signals
    axpy = jit.load(toy)
    assert jit.load(toy) is axpy and axpy.params_bytes in (None, ctypes.sizeof(Call))
    expected = y.double() + x.double()
    jit.launch(axpy, blocks(x), 256, 0, call)
    assert_close(y, expected, 1e-6)


@pytest.mark.gpu
def test_launch_on_the_current_stream(toy, signals):
    """Behind long work on the same stream: from another it would read too early."""
    x, y, call = signals
    axpy, stream = jit.load(toy), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(3)
        y.fill_(1)
        jit.launch(axpy, blocks(x), 256, 0, call)
    stream.synchronize()
    assert torch.equal(y, torch.full_like(y, 4))


@pytest.mark.gpu
def test_launch_in_a_graph(toy, signals):
    x, y, call = signals
    axpy, graph = jit.load(toy), torch.cuda.CUDAGraph()
    y.zero_()
    with torch.cuda.graph(graph):
        jit.launch(axpy, blocks(x), 256, 0, call)
    call.a = torch.nan  # the graph has its own copy
    for _ in range(3):
        graph.replay()
    assert_close(y, 3 * x.double(), 1e-6)


@pytest.mark.gpu
def test_much_shared_memory(toy, signals):
    x, y, call = signals
    backwards = jit.load(replace(toy, entry="backwards"))
    if backwards.shared_limit < 100_000:
        pytest.skip(f"this card gives a block {backwards.shared_limit} bytes of shared memory")
    jit.launch(backwards, (1, 1, 1), 512, 100_000, call)
    assert torch.equal(y, x.flip(0))
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        jit.launch(backwards, (1, 1, 1), 512, backwards.shared_limit + 1, call)


@pytest.mark.gpu
def test_launch_from_another_thread(toy, signals):
    """Its first call of CUDA is the launch."""
    x, y, call = signals
    axpy, expected = jit.load(toy), y.double() + x.double()
    torch.cuda.synchronize()
    thread = threading.Thread(target=jit.launch, args=(axpy, blocks(x), 256, 0, call, 0))
    thread.start()
    thread.join()
    assert_close(y, expected, 1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_launch_on_another_device(toy):
    x, y = torch.randn(2, 1000, device="cuda:1")
    expected = y.double() + x.double()
    axpy = jit.load(toy, torch.device("cuda", 1))
    jit.launch(axpy, blocks(x), 256, 0, Call(x.data_ptr(), y.data_ptr(), 0.5, 1000))
    assert_close(y, expected, 1e-6)


@pytest.mark.gpu
def test_ptx_runs(toy, signals, monkeypatch):
    x, y, call = signals
    expected = y.double() + x.double()
    monkeypatch.setattr(jit, "architecture", lambda index: "compute_80")
    jit.launch(jit.load(replace(toy, macros=("SCALE=2.0f",))), blocks(x), 256, 0, call)
    assert_close(y, expected, 1e-6)
