"""The kernels compile with whatever compiler is there, or say in a sentence why not; what loads fits its sources."""

import ast
import ctypes
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import warnings
from pathlib import Path

import pytest
from helpers import ROOT

from sparsify.cpu.native import build as kernels
from sparsify.cpu.native import library

DRIVER = ROOT / "tests" / "support" / "kernels" / "native_driver.py"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")

# Enough of a library to be found, checked and loaded, compiled in no time.
API = """
#ifndef SPARSIFY_SOURCES
#error "no digest"
#endif
static void* parallel;
#define API extern "C" __attribute__((visibility("default")))
API const char* sparsify_sources(void) { return SPARSIFY_SOURCES; }
API const char* sparsify_isa(void) { return "base"; }
API int sparsify_use(const char* isa) { return isa[0] == 'b'; }
API void sparsify_threads(void* gomp_parallel) { parallel = gomp_parallel; }
API void* threads_given(void) { return parallel; }
API int past_the_end(int* numbers, int count) { return numbers[count]; }
"""


def compilers() -> list:
    """The compilers that must do, each a test's parameter, skipped where it is missing."""
    missing = {name: shutil.which(name) is None for name in ("g++", "clang++")}
    return [
        pytest.param([name], id=name, marks=pytest.mark.skipif(gone, reason=f"{name} is not on this machine"))
        for name, gone in missing.items()
    ]


any_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in kernels.COMPILERS), reason="no C++ compiler on this machine"
)


@pytest.fixture
def folder(tmp_path):
    """Sources that compile in no time."""
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "api.cpp").write_text(API)
    (folder / "simd.h").write_text("#pragma once\n")
    return folder


@pytest.fixture
def fresh(monkeypatch, folder):
    """As if nobody had asked for the library of `folder` yet, whatever the environment says."""
    monkeypatch.delenv("SPARSIFY_NATIVE", raising=False)
    monkeypatch.delenv("SPARSIFY_ISA", raising=False)
    monkeypatch.setattr(library, "FOLDER", folder)
    monkeypatch.setattr(library, "_found", None)
    monkeypatch.setattr(library, "_warned", threading.Lock())
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Compiling.


@pytest.mark.parametrize("compiler", compilers())
def test_the_kernels_compile(compiler, tmp_path):
    built = kernels.build(tmp_path / "kernels.so", compiler=compiler)
    assert names(tmp_path) == {"kernels.so"}
    lib = ctypes.CDLL(str(built))
    assert kernels.built_from(lib) == kernels.digest()
    lib.sparsify_isa.restype = ctypes.c_char_p
    assert lib.sparsify_isa() in {b"avx512", b"avx2", b"base"}
    assert lib.sparsify_use(b"base")
    assert not lib.sparsify_use(b"abacus")


def test_the_kernels_stay_within_bounds(sanitizer, tmp_path):
    """Address and undefined-behaviour sanitizers over every kernel and instruction set, in a process of its own."""
    if not DRIVER.is_file():
        pytest.skip(f"{DRIVER.name} is not written yet")
    compiler, flags, runtime = sanitizer
    built = kernels.build(tmp_path / "kernels.so", compiler=compiler, extra=flags)
    run = sanitized(runtime, str(DRIVER), str(built))
    assert run.returncode == 0, run.stderr[-4000:]


def test_a_read_past_the_end_is_seen(sanitizer, folder, tmp_path):
    compiler, flags, runtime = sanitizer
    built = kernels.build(tmp_path / "kernels.so", folder, compiler, flags)
    code = f"import ctypes, numpy; a = numpy.ones(5, 'i4'); ctypes.CDLL({str(built)!r}).past_the_end(a.ctypes, {{}})"
    code = code.replace("a.ctypes", "ctypes.c_void_p(a.ctypes.data)")
    assert sanitized(runtime, "-c", code.format(4)).returncode == 0
    run = sanitized(runtime, "-c", code.format(5))
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr


@pytest.fixture
def sanitizer() -> tuple[list[str], list[str], str]:
    """A compiler with sanitizers, its flags for them, and what must be loaded before a Python that has none.

    One is enough: both find the same, and each takes a quarter of a minute.
    """
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD is how Linux loads sanitizers into Python")
    shared = f"libclang_rt.asan-{os.uname().machine}.so"
    for name, runtime, more in (("g++", "libasan.so", []), ("clang++", shared, ["-shared-libasan"])):
        if shutil.which(name):
            ask = [name, f"-print-file-name={runtime}"]
            path = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
            if os.path.isabs(path):  # what is missing comes back as it went in
                return [name], [*SANITIZE, *more], path
    pytest.skip("neither g++ nor clang++ with an address sanitizer on this machine")


def sanitized(runtime: str, *arguments: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True)


@pytest.mark.parametrize("compiler", compilers())
def test_instruction_sets_share_no_code(compiler, tmp_path):
    """Of an inline function that several files compile, the linker keeps one copy, perhaps one for another CPU."""
    if not shutil.which("nm"):
        pytest.skip("nm is not on this machine")
    # Without optimisation every function that is called stands on its own; hidden ones would not be listed as shared.
    built = kernels.build(tmp_path / "kernels.so", compiler=compiler, extra=["-O0", "-fvisibility=default"])
    listed = subprocess.run(["nm", "-C", "--defined-only", str(built)], capture_output=True, text=True, check=True)
    symbols = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    assert any(name == "sparsify_isa" for _, _, name in symbols)
    assert [name for _, kind, name in symbols if kind in "WVu"] == []  # put them into an anonymous namespace


def test_no_compiler_is_one_sentence(folder, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kernels.BuildError, match=r"^no C\+\+ compiler: .*; install one \(.*apt install g\+\+[^\n]*$"):
        kernels.build(tmp_path / "kernels.so", folder)


def test_a_compiler_of_ones_own_is_used_and_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", f"{tmp_path}/abacus -fast")
    with pytest.raises(kernels.BuildError, match=r"abacus -fast cannot be run: No such file.*; set CXX to"):
        kernels.build(tmp_path / "kernels.so", folder)


@any_compiler
def test_a_compiler_that_fails_is_quoted(folder, tmp_path):
    """And the library that was there stays, with nothing beside it."""
    (tmp_path / "kernels.so").write_text("as it was")
    (folder / "kernels_base.cpp").write_text("int one = two;\n")
    before = names(tmp_path)
    with pytest.raises(kernels.BuildError, match=r"failed at kernels_base.cpp:\n(.*\n)*.*error.*two"):
        kernels.build(tmp_path / "kernels.so", folder)
    assert names(tmp_path) == before
    assert (tmp_path / "kernels.so").read_text() == "as it was"


def test_no_sources_are_named(tmp_path):
    with pytest.raises(kernels.BuildError, match=f"no kernel sources in {tmp_path}"):
        kernels.build(tmp_path / "kernels.so", tmp_path, ["c++"])


def other_machine(tmp_path: Path, target: str) -> list[str]:
    """A compiler that says it compiles for `target`, writes down what it was asked, and makes empty files."""
    script = tmp_path / "other-c++"
    script.write_text(
        f"#!/bin/sh\n[ $1 = -dumpmachine ] && echo {target} && exit\n"
        f'echo "$@" >>{tmp_path}/asked\nwhile [ $# -gt 1 ]; do shift; done; : >"$1"\n'
    )
    script.chmod(0o755)
    return [str(script)]


@pytest.mark.skipif(os.name != "posix", reason="the stand-in for a compiler is a shell script")
@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu", "arm64-apple-darwin23"])
def test_each_source_gets_the_flags_of_its_instruction_set(folder, tmp_path, target):
    for name in (*kernels.X86_FLAGS, "kernels_base.cpp"):
        (folder / name).write_text("")
    kernels.build(tmp_path / "kernels.so", folder, other_machine(tmp_path, target), ["-Wextra"])
    asked = (tmp_path / "asked").read_text().splitlines()
    compiled = {Path(line.split(" -c ")[1].split()[0]).name: line.split() for line in asked if " -c " in line}
    assert len(asked) == len(compiled) + 1  # and one link
    assert all("-Wextra" in line for line in asked)
    if target.startswith("x86_64"):
        assert {name for name, flags in compiled.items() if "-mavx2" in flags} == {"kernels_avx2.cpp"}
        assert {name for name, flags in compiled.items() if "-mavx512f" in flags} == {"kernels_avx512.cpp"}
        assert not any("-DSPARSIFY_BASE_ONLY" in flags for flags in compiled.values())
    else:
        assert set(compiled) == {"api.cpp", "kernels_base.cpp"}
        assert all("-DSPARSIFY_BASE_ONLY" in flags for flags in compiled.values())
        assert not any("-mavx" in line for line in asked)


def test_the_digest_sees_names_and_contents(folder):
    seen = {kernels.digest(folder)}
    (folder / "simd.h").write_text("#pragma once\n\n")
    seen.add(kernels.digest(folder))
    (folder / "simd.h").rename(folder / "vector.h")
    seen.add(kernels.digest(folder))
    (folder / "notes.txt").write_text("no source")
    seen.add(kernels.digest(folder))
    assert len(seen) == 3


def test_the_builder_needs_nothing_but_python():
    """setup.py runs it where neither torch nor this package is installed."""
    tree = ast.parse((ROOT / "sparsify/cpu/native/build.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            assert str(node.module).split(".")[0] in sys.stdlib_module_names


# Loading.


@any_compiler
def test_a_current_library_is_loaded_once_and_silently(fresh):
    kernels.build(fresh / kernels.LIBRARY, fresh)
    assert kernels.is_current(fresh / kernels.LIBRARY, fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lib = library.load()
        assert lib is not None
        assert library.load() is lib
    assert library.describe()[0]
    assert library.describe()[1].startswith("base, ")


@any_compiler
def test_stale_sources_are_told(fresh):
    kernels.build(fresh / kernels.LIBRARY, fresh)
    (fresh / "simd.h").write_text("// of tomorrow\n")
    with pytest.warns(RuntimeWarning, match=rf"^{library.WITHOUT} \(built from other sources .*`{library.BUILD}`"):
        assert library.load() is None
    assert not kernels.is_current(fresh / kernels.LIBRARY, fresh)
    assert library.describe() == (False, f"built from other sources than those beside it: {library.BUILD}")


@any_compiler
def test_without_sources_the_library_is_trusted(fresh):
    kernels.build(fresh / kernels.LIBRARY, fresh)
    for path in kernels.sources(fresh):
        path.unlink()
    assert library.load() is not None


def test_a_missing_library_is_told_once(fresh):
    """By whichever of many threads comes first."""
    start = threading.Barrier(8)
    results = []

    def ask() -> None:
        start.wait()
        results.append(library.load())

    with pytest.warns(RuntimeWarning) as told:
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [None] * 8
    assert [str(warning.message).startswith(f"{library.WITHOUT} (not built)") for warning in told] == [True]
    assert library.describe() == (False, f"not built: {library.BUILD}")


def test_a_broken_library_is_told(fresh):
    (fresh / kernels.LIBRARY).write_text("no library")
    with pytest.warns(RuntimeWarning, match=rf"^{library.WITHOUT} \(cannot be loaded: "):
        assert library.load() is None
    assert not kernels.is_current(fresh / kernels.LIBRARY, fresh)


def test_switched_off_is_silent(fresh, monkeypatch):
    monkeypatch.setenv("SPARSIFY_NATIVE", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert library.load() is None
    assert library.describe() == (False, "switched off: SPARSIFY_NATIVE=0")
    monkeypatch.delenv("SPARSIFY_NATIVE")
    with pytest.warns(RuntimeWarning):  # it was the switch
        library.load()


@any_compiler
def test_an_instruction_set_can_be_chosen(fresh, monkeypatch):
    kernels.build(fresh / kernels.LIBRARY, fresh)
    monkeypatch.setenv("SPARSIFY_ISA", "abacus")
    with pytest.raises(ValueError, match="SPARSIFY_ISA is 'abacus', which cannot run here; take"):
        library.load()
    assert library.describe()[0] is False
    monkeypatch.setenv("SPARSIFY_ISA", "base")
    assert library.load() is not None


@any_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_the_kernels_share_torchs_threads(fresh):
    """The address given lies in an OpenMP runtime, and asking for it has loaded no other."""
    before = openmp_runtimes()
    kernels.build(fresh / kernels.LIBRARY, fresh)
    lib = library.load()
    assert lib is not None
    lib.threads_given.restype = ctypes.c_void_p
    address = lib.threads_given()
    if not before:
        assert address is None
        pytest.skip("this torch has its OpenMP runtime built in, or none")
    assert any(low <= address < high for spans in before.values() for low, high in spans)
    assert openmp_runtimes().keys() == before.keys()


def openmp_runtimes() -> dict[str, list[tuple[int, int]]]:
    """Where the OpenMP runtimes of this process lie: addresses from, to, by file."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        words = line.split()
        if len(words) > 5 and Path(words[5]).name.startswith(("libgomp", "libomp", "libiomp")):
            low, high = (int(end, 16) for end in words[0].split("-"))
            spans.setdefault(words[5], []).append((low, high))
    return spans


def test_the_test_run_pardons_that_one_warning():
    """A bare checkout has no library, and pytest turns every other warning into an error."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert f"ignore:{library.WITHOUT}:RuntimeWarning" in options["filterwarnings"]
