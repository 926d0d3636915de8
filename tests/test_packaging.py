"""One version, one licence, two script names, a quiet import, and a clear word where another package has our name."""

import contextlib
import fnmatch
import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

import pytest
from helpers import ROOT

import sparsify
from sparsify.install_check import DISTRIBUTION, RIVALS, check_name_collision

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def test_one_version():
    assert PROJECT["name"] == DISTRIBUTION
    assert PROJECT["version"] == sparsify.__version__
    with contextlib.suppress(PackageNotFoundError):  # a bare checkout works, too
        assert version(DISTRIBUTION) == sparsify.__version__, "installed before the version changed; install again"


def test_each_dependency_stands_once():
    names = [re.split(r"[<>=]", line)[0] for line in PROJECT["dependencies"]]
    assert names == sorted(set(names))


def test_licence_and_readme_are_there():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (ROOT / PROJECT["readme"]).is_file()


@pytest.mark.parametrize(
    ("package", "folder"), [("sparsify.cpu.native", "sparsify/cpu/native"), ("sparsify.cuda", "cuda")]
)
def test_every_kernel_source_is_packaged(package, folder):
    """And nothing else: setup.py adds the library that it compiled, never one that lay there."""
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"][package]
    names = {path.name for path in (ROOT / folder).iterdir() if path.is_file() and path.suffix != ".py"}
    packaged = {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert packaged
    assert packaged == {name for name in names if not name.startswith("_kernels.so")}


def test_scripts_lead_to_a_function():
    assert set(PROJECT["scripts"]) == {"sparsify", "hf-sparsify"}
    for target in PROJECT["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_import_is_quiet():
    """Importing the library starts no CUDA context and prints nothing."""
    code = "import sparsify, torch; assert not torch.cuda.is_initialized()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout == run.stderr == ""


@pytest.fixture(params=RIVALS)
def rival(request, tmp_path, monkeypatch):
    """A folder on the path into which another distribution was installed."""
    info = tmp_path / f"{request.param.replace('-', '_')}-1.3.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {request.param}\nVersion: 1.3.3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return request.param


def test_name_collision_is_named(rival, tmp_path):
    with pytest.raises(RuntimeError, match=rf"^{rival} 1.3.3 and {DISTRIBUTION} .*`pip uninstall {rival}`"):
        check_name_collision(tmp_path / "sparsify")


def test_a_rival_elsewhere_is_harmless(rival):
    check_name_collision()
