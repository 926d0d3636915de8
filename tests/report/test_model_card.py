"""README.md of a converted folder says what was found; its picture is drawn where matplotlib is there."""

import copy
import io
import struct
import sys
import tomllib

import pytest
from helpers import ROOT
from reports import card, converted, planned, rows

from sparsify.report import plots
from sparsify.report.charts import png
from sparsify.report.charts.chart import Dot
from sparsify.report.pareto import Series, chart
from sparsify.report.schema import Conversion


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What `sparsify convert` says of a tiny model, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("card")
    return converted(folder), folder / "out"


@pytest.fixture
def result(tiny):
    return copy.deepcopy(tiny[0])


def picture(found):
    """The picture of a report as JSON has it."""
    return plots.picture(Conversion.from_dict(found))


def tables(text):
    """Cells of every line of a table."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_card_says_what_was_measured(result):
    text, evaluation = card(result), result["evaluation"]
    assert text.startswith("---\nlibrary_name: sparsify\n") and "![" not in text
    found = tables(text[text.index("## What it costs") :])
    assert found[0] == ["", "dense", "sparse"] and set(found[1]) == {"---"}
    assert all(len(line) == 3 for line in found[: found.index(["---"] * 4) - 1])
    assert f"{evaluation['perplexity']:.4f} ± {evaluation['perplexity_stderr']:.4f}" in [line[2] for line in found]
    assert all(f"- {sentence}" in text for sentence in evaluation["verdict"])
    speed = evaluation["speed"]
    times = [
        f"{c['speedup']:.2f}x ({c['speedup_quartiles'][0]:.2f} - {c['speedup_quartiles'][1]:.2f})"
        for c in speed["columns"]
    ]
    assert ["against published, with quartiles", *times] in found
    factors = ", ".join(f"{gain['name']} {gain['factor']:.2f}x" for gain in speed["gains"])
    assert f"- {times[-1].split()[0]} as fast as the published code, at " in text and f"perplexity: {factors}; " in text


def test_card_of_a_plan_within_a_budget(result):
    found = planned(result["filters"])
    text = card(result | {"planned": found}, "plan.png")
    assert "![speed against loss](plan.png)" in text
    assert "5.90x faster convolutions on H100, predicted, at +0.060 % ± 0.035 % perplexity" in text
    steps = [line for line in tables(text) if len(line) == 7]
    assert len(steps) == 2 + len(found["steps"]) and steps[-1][0] == "6 (chosen)"
    assert steps[-1][4] == "+0.060 % ± 0.035 %"


@pytest.mark.parametrize("planning", [True, False])
def test_card_without_figures(result, planning):
    text = card(result | {"evaluation": None, "planned": planned(rows(2)) if planning else None})
    steps = [line for line in tables(text) if len(line) == 7]
    assert "None" not in text and bool(steps) == planning and text.endswith("\n")


def size(image):
    """Width and height of a PNG."""
    assert image.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", image[16:24])


CASES = {
    "a plan within a budget": lambda r: r.update(planned=planned(r["filters"])),
    "filters": lambda r: None,
    "many filters": lambda r: r.update(filters=rows(24)),
    "before there were budgets": lambda r: r.pop("planned"),
}


@pytest.mark.parametrize("case", CASES)
def test_picture_shows_something(result, case):
    """Its size, and that it is not one colour."""
    pytest.importorskip("matplotlib", reason=f"needs matplotlib: {plots.HOW_TO_GET}")
    from matplotlib import image

    CASES[case](result)
    drawn = picture(result)
    width, height = size(drawn)
    assert 1000 < width < 1400 and 300 < height < 1300
    pixels = image.imread(io.BytesIO(drawn))
    dark = (pixels[..., :3].min(-1) < 0.8).mean()
    assert 0.01 < dark < 0.6


def test_any_series_can_be_drawn():
    """Without a budget, and of more kinds than a search for a plan has."""
    pytest.importorskip("matplotlib", reason=f"needs matplotlib: {plots.HOW_TO_GET}")
    dots = tuple(Dot(1 + i, 10.0 ** (i - 5), 10.0 ** (i - 6), "here" if i == 2 else "") for i in range(5))
    series = [Series("masks", "tail", dots), Series("plans", "kept", dots[::2], line=True)]
    drawn = png.drawn([[("", chart(series, None, "faster"))]], 4.5)
    assert size(drawn) == (8 * png.DPI, 4.5 * png.DPI)


def test_nothing_to_draw(result):
    assert picture(result | {"filters": [], "planned": None}) is None


def test_without_matplotlib_there_is_no_picture(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert picture(result) is None


def test_extra_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["plots"] and f"{project['name']}[plots]" in plots.HOW_TO_GET


def test_folder_holds_picture_and_card(tiny):
    result, out = tiny
    drawn = picture(result) is not None
    assert (out / plots.NAME).is_file() == drawn
    assert (f"]({plots.NAME})" in (out / "README.md").read_text()) == drawn
