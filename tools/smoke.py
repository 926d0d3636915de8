"""Check that the package is whole, wherever it was imported from: every folder of it, and the kernel sources.

    python tools/smoke.py FOLDER

FOLDER is where `sparsify` must come from, so that a second copy on the path cannot pass in its place.
"""

import importlib.resources
import sys
from pathlib import Path

import sparsify
import sparsify.converters
import sparsify.evals

ROOT = Path(__file__).resolve().parent.parent


def main(folder: Path) -> None:
    for module in (sparsify, sparsify.converters, sparsify.evals):
        if not Path(str(module.__file__)).is_relative_to(folder):
            sys.exit(f"{module.__name__} came from {module.__file__}, expected it under {folder}")
    sources = {path.name for path in (ROOT / "cuda").iterdir() if path.suffix in {".cu", ".cuh"}}
    if sources:  # an empty folder is no package, and no installer carries it
        missing = sources - {entry.name for entry in importlib.resources.files("sparsify.cuda").iterdir()}
        if missing:
            sys.exit(f"sparsify.cuda lacks {', '.join(sorted(missing))}; see package-data in pyproject.toml")
    print(f"smoke: sparsify {sparsify.__version__} from {folder}, {len(sources)} kernel sources")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
