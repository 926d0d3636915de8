"""What every test gets: a fixed seed, poisoned memory, real data where there is some, and a GPU or a reason."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hub_server
import pytest
import torch

from sparsify.converters.models import tiled
from sparsify.cpu import linear, native

SLOW = {  # files that take many seconds: whole programs, emulated cards, everything that the pages say
    "test_cli", "test_cli_glue", "test_cli_lm", "test_docs", "test_emulator", "test_finetune",
    "test_pareto", "test_gpu_convolution", "test_journal", "test_planning", "test_fuzz",
    "test_gpu", "test_gpu_build", "test_hf", "test_hf_m2", "test_hf_tokenizers", "test_hf_training", "test_hub",
    "test_hub_cli", "test_native_build", "test_jit", "test_on_gpu", "test_packaging", "test_pipeline",
    "test_process", "test_reading", "test_real_weights", "test_refit", "test_sensitivity",
    "test_tiling", "test_tuning_cache",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow and what wants real data, and leave out what wants a card where there is none."""
    for item in items:
        if item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        if "test_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device; the same code ran on the CPU where it can"))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Every test draws the same numbers, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poison_empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Uninitialised memory reads as NaN, integers as their largest, so an unwritten output cannot pass by luck.

    torch does this itself below every way to allocate (empty, empty_like, new_empty, resize_, out=), so tracers see
    nothing of it.  `@pytest.mark.plain_empty` leaves memory and algorithms as users have them.
    """
    if request.node.get_closest_marker("plain_empty"):
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["compiled", "torch"])
def small_tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Tiles of so many tokens, prepared linear layers whatever their size, with the compiled kernels and without."""
    monkeypatch.setattr(tiled, "TILE_ROWS", 16)
    monkeypatch.setattr(linear, "PAYS_AT", 1)
    monkeypatch.setattr(linear, "WAYS", (linear.packed, linear.plain))
    if request.param == "torch":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip("the kernels are not compiled; the same tiles ran through torch")
    return tiled.TILE_ROWS


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with real weights and texts, from SPARSIFY_TEST_DATA; without it the test skips."""
    folder = os.environ.get("SPARSIFY_TEST_DATA")
    if not folder:
        pytest.skip("needs real weights or texts; set SPARSIFY_TEST_DATA to the folder that holds them")
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"SPARSIFY_TEST_DATA is {folder!r}, which is no folder")
    return Path(folder)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[hub_server.LocalHub]:
    """A hub on this machine, without repositories."""
    with hub_server.running(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="session")
def python() -> list[str]:
    """The first words of a command that runs Python with this checkout; a -c or -m follows."""
    root = Path(__file__).resolve().parent.parent
    return ["env", f"PYTHONPATH={root}", "OMP_NUM_THREADS=1", sys.executable]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB, which only root can make."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here; only root may")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def fill_up(small_disk: Path) -> Callable[[int], Path]:
    """Leaves so many pages of the small disk free; what takes up the rest can be removed."""

    def fill(pages: int) -> Path:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - pages * 4096))
        return ballast

    return fill
