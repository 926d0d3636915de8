"""Reports as types and as JSON: the one is the other, and what older versions wrote can still be read."""

import copy
from dataclasses import dataclass, field, fields, is_dataclass

import pytest
from layouts import write_tiny
from reports import converted, page, planned

import sparsify
from sparsify.report import schema
from sparsify.report.charts.chart import Area, Axis, Chart, between
from sparsify.report.schema import Conversion, FilledIn, Search
from sparsify.storage.records import OMIT, Record, Result

RECORDS = [one for one in vars(schema).values() if isinstance(one, type) and issubclass(one, Record)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """What `sparsify convert --json` prints of a tiny model, as if its plan had been found within a budget."""
    found = converted(tmp_path_factory.mktemp("report"))
    return found | {"planned": planned(found["filters"], figure="perplexity")}


@pytest.fixture
def found(tiny):
    return copy.deepcopy(tiny)


def without(data, path):
    """The same without one key, as "evaluation.dense.kl"."""
    data = copy.deepcopy(data)
    *way, last = path.split(".")
    inner = data
    for step in way:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    del inner[last]
    return data


def test_json_comes_back_key_for_key(found):
    read = Conversion.from_dict(found)
    assert read.to_dict() == found and Conversion.from_dict(read.to_dict()) == read
    assert read.evaluation.dense.perplexity == found["evaluation"]["dense"]["perplexity"]


def test_a_result_can_be_asked_for_names_too(tmp_path):
    result = sparsify.inspect(str(write_tiny(tmp_path / "tiny")), length=8)
    assert result["sites"][0]["channels"] == result.sites[0].channels
    assert list(result) == [f.name for f in fields(result)] and "text" not in result


@pytest.mark.parametrize("one", RECORDS, ids=lambda one: one.__name__)
def test_every_record_is_frozen_and_says_what_it_is(one):
    assert is_dataclass(one) and one.__dataclass_params__.frozen and not one.__doc__.startswith(f"{one.__name__}(")
    if issubclass(one, Result):
        assert one.__repr__ is Result.__repr__  # a curve has hundreds of points
        assert not {f.name for f in fields(one)} & {"keys", "values", "items", "get"}


def test_keys_that_nobody_knows_are_ignored(found):
    more = found | {"weather": "fine"}
    more["evaluation"]["dense"]["weather"] = {"rain": 1}
    assert Conversion.from_dict(more) == Conversion.from_dict(without(more, "evaluation.dense.weather"))


@pytest.mark.parametrize(
    "path",
    ["planned", "planned.figure", "evaluation.figure", "evaluation.parts", "evaluation.linears", "data", "benchmark",
     "origin", "repo", "filters.0.curves", "filters.0.curves.cells", "filters.0.curves.kept_share"],
)  # fmt: skip
def test_what_older_versions_did_not_write_is_filled_in(found, path):
    older = without(found, path)
    assert Conversion.from_dict(older).filters and "<html" in page(older)


@pytest.mark.parametrize("path", ["source", "evaluation.perplexity", "filters.0.density", "planned.steps.0.gain"])
def test_what_is_missing_is_named(found, path):
    named = path.replace(".0", "[0]").replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(ValueError, match=rf"has no {named}, .*make it again"):
        Conversion.from_dict(without(found, path))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"causal": 1}, "causal is 1, expected true or false"),
        ({"source": None}, "source is None, expected text"),
        ({"filters": {}}, r"filters is \{\}, expected a list"),
        ({"filters": [7]}, r"filters\[0\] is 7, expected an object"),
        ({"planned": [1]}, "planned is .1., expected an object"),
    ],
)
def test_what_is_of_another_type_is_named(found, value, sentence):
    with pytest.raises(ValueError, match=sentence):
        Conversion.from_dict(found | value)


def test_numbers_are_numbers(found):
    search = Search.from_dict(found["planned"] | {"budget": 1, "bound": None})
    assert search.budget == 1 and search.bound is None
    for wrong in (True, "1"):
        with pytest.raises(ValueError, match=r"budget is .*, expected a number"):
            Search.from_dict(found["planned"] | {"budget": wrong})
    with pytest.raises(ValueError, match=r"held_out_windows is 1.5, expected a whole number"):
        Search.from_dict(found["planned"] | {"held_out_windows": 1.5})


@dataclass(frozen=True)
class Maybe(Record):
    null: int | None
    nothing: int | None = field(default=None, metadata=OMIT)


def test_nothing_is_null_or_has_no_key():
    assert Maybe(None).to_dict() == {"null": None} and Maybe(1, 2).to_dict() == {"null": 1, "nothing": 2}
    own = {"nll_per_token": 1.0, "nll_stderr": None, "pseudo_perplexity": 2.7, "pseudo_perplexity_stderr": None}
    dense = FilledIn(name="dense", **own, accuracy=0.5)
    assert dense.to_dict() == {"name": "dense", **own, "accuracy": 0.5}
    beside = FilledIn(name="sparse", **own, accuracy=0.5, baseline="dense", kl=0.0).to_dict()
    assert beside["kl"] == 0 and beside["nll_difference_stderr"] is None  # of one sample


def test_a_chart_is_drawn_alike_everywhere():
    """The picture of the card asks the same description as the page; the part of a curve ends where it is cut."""
    assert between([(0, 0), (10, 10), (20, 0)], 5, 15) == [(5, 5), (10, 10), (15, 5)]
    png = pytest.importorskip("sparsify.report.charts.png")
    figures = pytest.importorskip("matplotlib.figure", reason="needs matplotlib")
    axis = Axis(0, 20, {0.0: "none", 20.0: "all"})
    chart = Chart("t", "d", "c", axis, axis, [Area("kept", [(0, 0), (10, 10), (20, 0)], 5, 15)], [("kept", "kept")])
    panel = figures.Figure().subplots()
    png.draw(panel, chart)
    assert panel.lines[0].get_xydata().tolist() == [[0.25, 0.25], [0.5, 0.5], [0.75, 0.25]]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["none", "all"]
