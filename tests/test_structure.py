"""The tree is the map: imports point inward, and what is a package is packaged."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LAYERS = {
    "sparsify": ROOT / "sparsify",
    "sparsify.converters": ROOT / "converters",
    "sparsify.evals": ROOT / "evals",
    "sparsify.hf": ROOT / "sparsify" / "hf",
}
ALLOWED = {
    "sparsify": set(),
    "sparsify.converters": {"sparsify"},
    "sparsify.evals": {"sparsify"},
    "sparsify.hf": {"sparsify", "sparsify.converters"},
}
JOINTS = {path.name for path in (ROOT / "sparsify").glob("cli*.py")} | {"__main__.py"}  # where the layers meet
FRONT = ROOT / "sparsify" / "__init__.py"  # names what lies further out, imported when it is asked for


def layer_of(module: str) -> str | None:
    """The layer a dotted module name belongs to: the longest that holds it."""
    holders = [layer for layer in LAYERS if f"{module}.".startswith(f"{layer}.")]
    return max(holders, key=len, default=None)


def imported(source: str, package: str) -> Iterator[tuple[str, bool]]:
    """Every module that a source imports, at the top or later: its dotted name, and whether the import is relative.

    package: the package that the source is a module of, against which relative imports count.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield from ((f"{module}.{alias.name}", node.level > 0) for alias in node.names)


def complaints(source: str, package: str) -> list[str]:
    """What a source imports that its layer may not, in words."""
    layer = layer_of(package)
    found = []
    for module, relative in imported(source, package):
        target = layer_of(module)
        if module.split(".")[0] in {"converters", "evals"}:
            found.append(f"{module} would be a second copy of sparsify.{module}")
        elif target == layer and not relative:
            found.append(f"{module} lies in the same folder; import it relatively")
        elif target not in {None, layer} | ALLOWED[layer]:
            found.append(f"{module} lies outward")
        elif target not in {None, layer} and relative:
            found.append(f"{module} lies in another folder; import it by its full name")
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_inward(layer):
    folder = LAYERS[layer]
    for path in folder.rglob("*.py"):
        if path.name not in JOINTS and path != FRONT:
            package = ".".join((layer, *path.parent.relative_to(folder).parts))
            assert not complaints(path.read_text(), package), path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("sparsify", "from sparsify.converters import load"),
        ("sparsify", "def f():\n    import sparsify.evals.quality"),
        ("sparsify", "from sparsify import evals"),
        ("sparsify", "from . import converters"),
        ("sparsify.evals", "from sparsify.converters.hyena_dna import HyenaDNA"),
        ("sparsify.evals", "from ..fftconv import fftconv"),
        ("sparsify.converters", "from converters import registry"),
        ("sparsify.converters", "from sparsify.converters import registry"),
    ],
)
def test_an_outward_import_is_seen(package, source):
    assert len(complaints(source, package)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("sparsify", "from . import cpu\nfrom .fftconv import fftconv\nimport torch"),
        ("sparsify.evals", "from . import Logits\nfrom .data import Windows\nfrom sparsify.plan import Plan"),
        ("sparsify.converters", "import sparsify\nfrom sparsify import ConvSite\nfrom cuda.bindings import nvrtc"),
    ],
)
def test_an_inward_import_passes(package, source):
    assert complaints(source, package) == []


def test_kernel_folder_holds_no_python():
    """A module in cuda/ would shadow NVIDIA's package of that name in every checkout."""
    assert not list((ROOT / "cuda").rglob("*.py*"))


def test_every_package_is_listed():
    """Explicit lists rot: a folder with __init__.py that pyproject.toml forgets is missing from the wheel only."""
    table = PYPROJECT["tool"]["setuptools"]
    folders = {ROOT / path: package for package, path in table["package-dir"].items()}
    assert all(folder.is_dir() for folder in folders)
    for top in ("sparsify", "converters", "evals"):
        for init in (ROOT / top).rglob("__init__.py"):
            package = ".".join((folders[ROOT / top], *init.parent.relative_to(ROOT / top).parts))
            assert package in table["packages"], f"list {package} in pyproject.toml"
