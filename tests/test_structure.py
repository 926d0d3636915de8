"""The tree is the map: imports point inward, and what is a package is packaged."""

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import conftest
import pytest
from helpers import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LAYERS = {
    "sparsify": ROOT / "sparsify",
    "sparsify.converters": ROOT / "converters",
    "sparsify.evals": ROOT / "evals",
    "sparsify.hf": ROOT / "sparsify" / "hf",
    "sparsify.pipeline": ROOT / "sparsify" / "pipeline",
    "sparsify.cli": ROOT / "sparsify" / "cli",
}
ALLOWED = {
    "sparsify": set(),
    "sparsify.converters": {"sparsify"},
    "sparsify.evals": {"sparsify"},
    "sparsify.hf": {"sparsify", "sparsify.converters"},
    "sparsify.pipeline": {"sparsify", "sparsify.converters", "sparsify.evals"},
    "sparsify.cli": {"sparsify", "sparsify.pipeline"},
}
JOINTS = {ROOT / "sparsify" / "__main__.py"}  # where the layers meet
CLICK = "click"  # what parses the command line, and belongs nowhere else
MANY = 15  # modules side by side, beyond which nobody finds one
SUFFIXES = {
    "",
    ".cff",
    ".cpp",
    ".css",
    ".cu",
    ".cuh",
    ".gz",
    ".h",
    ".json",
    ".md",
    ".png",
    ".py",
    ".safetensors",
    ".sh",
    ".svg",
    ".toml",
    ".typed",
    ".yml",
}
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
    """What a source imports that its layer may not, or in another way than the others do, in words."""
    layer = layer_of(package)
    found = []
    for module, relative in imported(source, package):
        target = layer_of(module)
        if module.split(".")[0] == CLICK and layer != "sparsify.cli":
            found.append(f"{module} is for sparsify.cli alone")
        if module.split(".")[0] in {"converters", "evals"}:
            found.append(f"{module} would be a second copy of sparsify.{module}")
        elif target not in {None, layer} | ALLOWED[layer]:
            found.append(f"{module} lies outward")
        elif relative and not f"{module}.".startswith(f"{package}."):
            found.append(f"{module} lies in another folder; import it by its full name")
        elif not relative and home(module) == package:
            found.append(f"{module} lies in the same folder; import it relatively")
    return found


def home(module: str) -> str | None:
    """The package that a name is imported from: that of the module which has it, or which it is."""
    for name in (module, module.rpartition(".")[0]):
        if (place := place_of(name)) is not None:
            return name.rpartition(".")[0] if place.suffix == ".py" else None
    return None


def place_of(module: str) -> Path | None:
    """The file of a module, the folder of a package; None for what is neither."""
    layer = layer_of(module)
    if layer is None:
        return None
    path = LAYERS[layer].joinpath(*module.removeprefix(layer).strip(".").split("."))
    return next((p for p in (path.with_suffix(".py"), path) if p.exists() and p != ROOT), None)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_inward(layer):
    folder = LAYERS[layer]
    for path in folder.rglob("*.py"):
        if path not in JOINTS and path != FRONT:
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
        ("sparsify.cli", "from sparsify.evals import quality"),
        ("sparsify.pipeline", "from sparsify.cli.terminal import say"),
        ("sparsify.pipeline", "import click"),
        ("sparsify.evals", "from click import echo"),
        ("sparsify.evals", "from ..fftconv import fftconv"),
        ("sparsify.gpu", "from ..filters import spectra"),
        ("sparsify.gpu", "from sparsify.gpu.planner import Domain"),
        ("sparsify.gpu", "from sparsify.gpu import planner"),
        ("sparsify.converters", "from converters import registry"),
        ("sparsify.converters", "from sparsify.converters import registry"),
    ],
)
def test_an_outward_import_is_seen(package, source):
    assert len(complaints(source, package)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("sparsify", "from .fftconv import fftconv\nfrom .cpu import backend\nimport torch"),
        ("sparsify.gpu", "from . import planner\nfrom sparsify.filters import spectra\nfrom .planner import Domain"),
        ("sparsify.evals", "from . import Logits\nfrom .data import Windows\nfrom sparsify.plan import Plan"),
        ("sparsify.pipeline", "from sparsify.converters import load\nfrom sparsify.evals import quality"),
        ("sparsify.cli", "import click\nfrom sparsify.pipeline import convert\nfrom . import tables"),
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


def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    found = {}
    for layer, top in LAYERS.items():
        for path in top.rglob("*.py"):
            name = ".".join((layer, *path.relative_to(top).with_suffix("").parts)).removesuffix(".__init__")
            if layer_of(name) == layer:
                found[name] = path
    return found


def imported_at_once(path: Path, package: str) -> set[str]:
    """The modules of ours that are imported together with a file: not in a function, nor for type checkers alone."""
    known, found = modules(), set()

    def look(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for module, _ in imported(ast.unparse(node), package):
                    found.update(name for name in (module, module.rpartition(".")[0]) if name in known)
            elif isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
                look(node.body + node.orelse)
            elif isinstance(node, ast.Try):
                look(node.body)

    look(ast.parse(path.read_text()).body)
    return found


def test_no_import_goes_round_in_a_circle():
    """Of modules alone: a package's __init__ names what is inside."""
    files = {name: path for name, path in modules().items() if path.name != "__init__.py"}
    graph = {
        name: imported_at_once(path, name.rpartition(".")[0]) & files.keys() - {name} for name, path in files.items()
    }
    done: set[str] = set()
    for _ in graph:
        done |= {name for name, needs in graph.items() if needs <= done}
    assert not sorted(graph.keys() - done)


def test_no_folder_holds_too_many_modules():
    folders = {path.parent for path in (*modules().values(), *(ROOT / "tests").rglob("*.py"))}
    assert {
        f.name: n for f in folders if (n := len([p for p in f.glob("*.py") if p.name != "__init__.py"])) > MANY
    } == {}


def test_tests_share_by_support_alone():
    """A test file can be moved, run and read alone."""
    tests = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    assert [name for name, text in tests.items() if re.search(r"^(?:from|import) test_(?!data\b)", text, re.M)] == []
    assert sorted(conftest.SLOW - tests.keys()) == []


def test_nothing_lies_around():
    """What merges and editors leave, and what is made, is not a part of the project."""
    try:
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git repository here, or no git")
    paths = [Path(line) for line in done.stdout.splitlines()]
    assert [str(p) for p in paths if p.suffix not in SUFFIXES] == []
