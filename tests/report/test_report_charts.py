"""Numbers behind pictures, scales that do not lie, and speed against loss drawn where it belongs."""

import json
import math
import re
from itertools import combinations, pairwise

import pytest
import torch
from reports import PLANS, decaying, planned, rows

from sparsify.filters.filter import Filter
from sparsify.filters.monarch import BlockMask
from sparsify.filters.spectra import energy_by_bin, energy_by_tap
from sparsify.filters.split import split
from sparsify.plan import FilterPlan
from sparsify.report.charts import svg
from sparsify.report.charts.chart import Dot, Frame, decades, factors, symlog
from sparsify.report.charts.labels import NARROW, box, placed, touch
from sparsify.report.curves import FLOOR_DB, MOST_BANDS, bands, cells, curve, curves
from sparsify.report.figures import percent
from sparsify.report.pareto import MOST, Series, axes, below, chart, drawable, series_of
from sparsify.report.schema import Curves, Search

# --- numbers of a filter -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 160, 161, 1000, 1 << 17])
def test_curve_laws(length):
    energy = torch.rand(length, dtype=torch.float64) ** 9 + 1e-30
    x, dB = zip(*curve(energy), strict=True)
    assert x[0] == 1 and x[-1] == length and all(a < b for a, b in pairwise(x))
    assert max(dB) == 0 and min(dB) >= FLOOR_DB and len(x) <= 160
    assert json.loads(json.dumps(curve(energy))) == curve(energy)
    assert curve(7 * energy) == curve(energy)  # a level is relative


def test_curve_takes_the_loudest_of_a_cell():
    energy = torch.full((10_000,), 1e-4)
    energy[7777] = 1.0  # a thin line, which taking every 60th entry would miss
    points = curve(energy)
    assert [dB for _, dB in points].count(0) == 1 and [dB for _, dB in points].count(-40) == len(points) - 1
    at = next(x for x, dB in points if dB == 0)
    assert 7778 <= at < 1.1 * 7778


def test_silence_lies_on_the_floor():
    assert {dB for _, dB in curve(torch.zeros(50))} == {FLOOR_DB}


@pytest.mark.parametrize("length", [1, 7, 64, 65, 5000])
def test_cells_laws(length):
    energy = torch.rand(length, dtype=torch.float64)
    kept = torch.rand(length) < 0.3
    shares, dB = zip(*cells(energy, kept), strict=True)
    assert len(shares) == min(64, length) and max(dB) == 0 and min(dB) >= FLOOR_DB
    assert sum(shares) / len(shares) == pytest.approx(kept.double().mean().item(), abs=2e-2 if length % 64 else 1e-3)


def test_what_is_drawn_of_both_directions():
    """Lags d and -d together; the tail is that of the head which is fitted to the mask on both sides."""
    k, mask = torch.cat([0.3 * decaying().flip(-1), decaying()], dim=-1), BlockMask.low_pass(64, 0.25)
    taps, length = 5, decaying().shape[-1]
    found = curves(Filter(k, length), FilterPlan("split", taps, mask), 64)
    assert found.taps == curve(energy_by_tap(Filter(k, length))) and found.kept_taps == taps
    assert found.tail == curve(energy_by_bin(split(Filter(k, length), taps, mask)[1], 64))
    by_ramp = curve(energy_by_bin(split(Filter(k, length), taps)[1], 64))
    assert found.tail != by_ramp and found.bins == curve(energy_by_bin(Filter(k, length), 64))


def test_cells_say_where():
    energy, kept = torch.full((128,), 1e-3), torch.zeros(128, dtype=torch.bool)
    energy[6:8], kept[7] = 1.0, True
    found = cells(energy, kept)
    assert found[3] == [0.5, 0.0] and found.count([0.0, -30.0]) == 63


def test_teeth_of_a_comb_are_listed_up_to_a_number():
    comb = torch.arange(4 * MOST_BANDS) % 4 == 0
    assert len(bands(comb)) == MOST_BANDS and bands(comb)[1] == [1 / MOST_BANDS, 1.25 / MOST_BANDS]
    finer = torch.arange(8 * MOST_BANDS) % 2 == 0
    finer[: 4 * MOST_BANDS] = False
    assert bands(finer) == [[0.5, 1.0]]


@pytest.mark.parametrize("kind", PLANS)
def test_curves_say_what_a_plan_keeps(kind):
    plan = PLANS[kind]
    found = curves(decaying(), plan, 64)
    assert Curves.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    area = sum(sum(held for held, _ in strip) / len(strip) for strip in (found.cells.taps, found.cells.bins) if strip)
    assert area == pytest.approx(plan.density(64), abs=1e-3)
    assert (found.tail is not None) == (kind == "split")
    assert found.bins == curve(energy_by_bin(decaying(), 64))


# --- scales --------------------------------------------------------------------------------------------------------


def test_symlog_is_even_inside_and_tenfold_outside():
    axis = symlog(-1e-3, 1.0, 1e-4)
    part = [axis.part(value) for value in (-1e-3, -1e-4, 0, 5e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)]
    steps = [b - a for a, b in pairwise(part)]
    assert part[0] == 0 and part[-1] == pytest.approx(1)
    assert steps == pytest.approx([1 / 7, 1 / 7, 0.5 / 7, 0.5 / 7, *[1 / 7] * 4])
    assert list(axis.ticks.values()) == ["−0.1 %", "−0.01 %", "0 %", "0.01 %", "0.1 %", "1 %", "10 %", "100 %"]
    assert [float(words.replace("−", "-").split()[0]) / 100 for words in axis.ticks.values()] == pytest.approx(
        list(axis.ticks)
    )


@pytest.mark.parametrize(("low", "high"), [(1, 1.2), (0.9, 1.7), (1, 4), (0.5, 90), (1, 3000), (1, 1e6)])
def test_ratios_have_few_round_labels(low, high):
    axis = factors(low, high)
    assert 3 <= len(axis.ticks) <= 10 and all(low <= tick <= high for tick in axis.ticks)
    assert all(float(label[:-1]) == pytest.approx(tick, rel=1e-2) for tick, label in axis.ticks.items())
    assert axis.part(math.sqrt(low * high)) == pytest.approx(0.5)


def test_a_frame_maps_corners_to_corners():
    frame = Frame(decades(1000), symlog(0, 1, 1e-3), 200)
    assert (frame.x(1), frame.x(1000), frame.y(0), frame.y(1)) == (0, 100, 200, 0)
    assert list(decades(5000).ticks.values()) == ["1", "10", "100", "1,000"]


@pytest.mark.parametrize(
    ("change", "stderr", "words"),
    [
        (4.5e-4, 2.1e-4, "+0.045 % ± 0.021 %"),
        (-5e-6, 3e-6, "-0.0005 % ± 0.0003 %"),
        (0.25, None, "+25.000 %"),
        (3e-7, None, "+0.00003 %"),
        (0.0, None, "+0.000 %"),
        (0.0, 0.0, "+0.000 % ± 0.000 %"),
        (1e-12, None, "+0.000000 %"),
    ],
)
def test_small_changes_get_the_digits_they_need(change, stderr, words):
    assert percent(change, stderr) == words


# --- speed against loss --------------------------------------------------------------------------------------------


@pytest.fixture
def found():
    return Search.from_dict(planned(rows(3)))


def circles(html):
    """Class, x in percent and y of every dot, in order."""
    place = r'<g class="(\w+)"><svg x="([\d.]+)%">(?:<title>.*?</title>)?(?:<path[^>]*>)?'
    found = re.findall(place + r'<circle class="dot" cy="([\d.]+)"', html)
    return [(kind, float(x), float(y)) for kind, x, y in found]


def test_series_say_what_was_found(found):
    by_name = {one.name: one for one in series_of(found)}
    assert [d.x for d in by_name["measured, fits"].dots] == pytest.approx([3, 5.5, 5.9])
    assert [d.y for d in by_name["measured, does not fit"].dots] == [2.1e-3, 1e-4, 8e-4]
    assert [(d.x, d.y) for d in by_name["dense"].dots] == [(1, 0)]
    assert [d.label for one in by_name.values() for d in one.dots if d.label] == ["chosen: 5.90x", "dense"]
    assert len(by_name["predicted"].dots) == 40 and by_name["predicted"].line


def test_dots_lie_where_their_numbers_say(found):
    series = series_of(found)
    across, up, _ = axes(drawable(series), found.budget)
    frame = Frame(across, up, 340)
    dots = circles(svg.drawn(chart(series, found.budget, "faster")))
    expected = [(one.kind, frame.x(d.x), frame.y(d.y)) for one in series if not one.line for d in one.dots]
    assert dots == expected and len(dots) == 7
    line = frame.y(found.budget)
    too_much = [y < line for _, _, y in dots]
    assert too_much == [True, False, False, False, False, False, False]


def test_whiskers_reach_one_standard_error(found):
    series = [Series("one", "kept", (Dot(2, 1e-3, 5e-4),))]
    html = svg.drawn(chart(series, 1e-3, "faster"))
    across, up, _ = axes(series, 1e-3)
    frame = Frame(across, up, 340)
    assert f'd="M0,{frame.y(1.5e-3):g}V{frame.y(5e-4):g}M' in html
    assert 'class="line"' not in svg.drawn(chart([Series("one", "kept", (Dot(2, 1e-3),))], 1e-3, "faster"))


def test_lines_end_where_predictions_do(found):
    front = drawable(series_of(found))[0].dots
    assert front[-1].y == MOST and front[-2].y < MOST
    assert len(front) < 40 and all(a.y < b.y for a, b in pairwise(front))
    flat = [Dot(1, 0), Dot(2, 1e-3)]
    assert list(below(flat)) == flat


@pytest.mark.parametrize("budget", [None, 2e-4, 1e-2])
@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.3])
def test_every_scale_fits(budget, scale):
    """Losses from 0.001 % to 30 %, below zero too, stand within the frame; labels within it and clear of each other."""
    dots = tuple(Dot(1 + i, scale * (i - 1), scale / 2, f"number {i}") for i in range(5))
    series = [Series("masks", "tail", dots), Series("dense", "whole", (Dot(1, 0, None, "dense"),))]
    across, up, even = axes(series, budget)
    frame = Frame(across, up, 340)
    assert all(0 <= frame.x(dot.x) <= 100 for dot in dots)
    assert all(0 <= frame.y(dot.y + side * dot.error) <= 340 for dot in dots for side in (-1, 1))
    assert math.log10(even) == pytest.approx(round(math.log10(even)))
    boxes = [box(*place) for place in placed(frame, chart(series, budget, "faster"))]
    assert len(boxes) >= 4 and not any(touch(a, b) for a, b in combinations(boxes, 2))
    assert all(a >= 0 and b >= 0 and c <= NARROW + 8 and d <= 340 for a, b, c, d in boxes)


def test_a_crowd_keeps_labels_apart():
    dots = tuple(Dot(2 + i / 100, 1e-3, None, f"the same place {i}") for i in range(30))
    series = [Series("masks", "tail", dots)]
    across, up, _ = axes(series, None)
    found = placed(Frame(across, up, 340), chart(series, None, "faster"))
    boxes = [box(*place) for place in found]
    assert 1 <= len(found) < 30 and not any(touch(a, b) for a, b in combinations(boxes, 2))


def test_names_of_series_are_escaped():
    series = [Series("<one>", "tail", (Dot(2, 1e-3, None, "<two>", "<three>"),))]
    html = svg.drawn(chart(series, None, "<four>"))
    assert all(f"&lt;{word}&gt;" in html and f"<{word}>" not in html for word in ("one", "two", "three", "four"))
