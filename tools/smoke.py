"""Check that the package is whole, wherever it was imported from: every folder of it, and the kernel sources.

    python tools/smoke.py FOLDER compiled|plain

FOLDER is where `sparsify` must come from, so that a second copy on the path cannot pass in its place.  The second word
says whether the kernels for CPUs must be there as a library, or must not.
"""

import importlib.resources
import sys
from pathlib import Path

import sparsify
import sparsify.converters
import sparsify.cpu.native
import sparsify.evals
from sparsify.cpu.native.library import describe

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {
    "sparsify.cuda": (ROOT / "cuda", {".cu", ".cuh"}),
    "sparsify.cpu.native": (ROOT / "sparsify" / "cpu" / "native", {".h", ".cpp"}),
}


def main(folder: Path, kernels: str) -> None:
    for module in (sparsify, sparsify.converters, sparsify.evals, sparsify.cpu.native):
        if not Path(str(module.__file__)).is_relative_to(folder):
            sys.exit(f"{module.__name__} came from {module.__file__}, expected it under {folder}")
    count = 0
    for package, (place, suffixes) in SOURCES.items():
        sources = {path.name for path in place.iterdir() if path.suffix in suffixes}
        if sources:  # an empty folder is no package, and no installer carries it
            missing = sources - {entry.name for entry in importlib.resources.files(package).iterdir()}
            if missing:
                sys.exit(f"{package} lacks {', '.join(sorted(missing))}; see package-data in pyproject.toml")
        count += len(sources)
    compiled, what = describe()
    if compiled != (kernels == "compiled"):
        sys.exit(f"the kernels are {what!r}, expected them {kernels}")
    print(f"smoke: sparsify {sparsify.__version__} from {folder}, {count} kernel sources, {what}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
