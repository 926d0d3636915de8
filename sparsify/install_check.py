"""Is this installation whole?  Another distribution on PyPI owns the import name `sparsify` too."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

DISTRIBUTION = "spectral-sparsify"
RIVALS = ("eai-sparsify", "sparsify")  # distributions that install a package and a script called `sparsify`


def check_name_collision(package: Path = Path(__file__).parent) -> None:
    """Nothing, or a RuntimeError where a rival was installed into the same folder: pip mixes the files in silence.

    package: folder of the running `sparsify`.  A rival installed elsewhere is harmless: whoever comes first on the
    path is whole.
    """
    for rival in RIVALS:
        try:
            found = distribution(rival)
        except PackageNotFoundError:
            continue
        if Path(str(found.locate_file("sparsify"))).resolve() == package.resolve():
            raise RuntimeError(
                f"{rival} {found.version} and {DISTRIBUTION} both install a package called sparsify into "
                f"{package.parent}, so files of one overwrite the other's; give each its own environment, or run "
                f"`pip uninstall {rival}` and then `pip install --force-reinstall --no-deps {DISTRIBUTION}`"
            )
