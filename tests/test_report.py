"""The page is one sound file, says what the dictionary says, and draws what is kept where it is kept."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import torch
from click.testing import CliRunner
from layouts import write_tiny

from sparsify.cli import main
from sparsify.evals import causality
from sparsify.report import FLOOR_DB, LEAK_LIMIT, curve, page, tone
from sparsify.spectra import energy_by_bin, energy_by_tap
from sparsify.split import split

VOID = {"meta", "wbr"}
CUTS = {  # kind: what `curves` says of the kept part
    "split": {"kept_taps": 8, "kept_band": [[0, 0.25]]},
    "partial": {"kept_taps": 8, "kept_band": None},
    "frequency-sparse": {"kept_taps": None, "kept_band": [[0, 0.25]]},
    "dense": {"kept_taps": None, "kept_band": None},
}


class Page(HTMLParser):
    """Refuses tags that do not close in order; collects attributes, table cells and all text outside <style>."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.cells, self.text = [], [], [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """What `sparsify convert` says of a tiny model under a split plan."""
    folder = tmp_path_factory.mktemp("report")
    letters = torch.randint(4, (1000,), generator=torch.Generator().manual_seed(0))
    (folder / "dna.txt").write_text("".join("ACGT"[i] for i in letters))
    asked = ["--split", "8:0.25", "--data", folder / "dna.txt", "--json"]
    done = CliRunner().invoke(main, [str(a) for a in ["convert", write_tiny(folder / "tiny"), folder / "out", *asked]])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture
def result(converted):
    """The same, fresh, with curves."""
    result = copy.deepcopy(converted)
    k = torch.randn(3, 64) * torch.exp(-torch.arange(64) / 9)
    for row in result["filters"]:
        row["curves"] = curves(k, "split")
    return result


def curves(k, kind):
    tail = energy_by_bin(split(k, 8)[1], k.shape[-1])
    whole = {"taps": curve(energy_by_tap(k)), "bins": curve(energy_by_bin(k, k.shape[-1]))}
    return whole | {"tail": curve(tail) if kind == "split" else None} | CUTS[kind]


def only_dense(result):
    result["evaluation"] |= result["evaluation"]["dense"] | {"dense": None, "verdict": []}


CHANGES = {
    "as it is": lambda r: None,
    "without evaluation": lambda r: r.update(evaluation=None),
    "without curves": lambda r: [f.pop("curves") for f in r["filters"]],
    "nothing replaced": only_dense,
    "one sample": lambda r: r["evaluation"].update(perplexity_stderr=None, perplexity_ratio_stderr=None),
    "not causal": lambda r: r["evaluation"].update(
        leak=None, perplexity_cut=None, perplexity_cut_ratio=None, verdict=[]
    ),
    "never timed": lambda r: r["evaluation"].update(speedup=None, speedup_quartiles=None, parts=None),
    "before there were parts": lambda r: r["evaluation"].pop("parts"),
    "the same everywhere": lambda r: [
        b.update(perplexity=4.0)
        for row in (r["evaluation"], r["evaluation"]["dense"])
        for b in row["perplexity_by_position"]
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_page_is_one_sound_file(result, change):
    CHANGES[change](result)
    html = page(result)
    made = Page(html)
    assert made.text and not {"script", "link", "img", "iframe"} & set(made.tags)
    assert not {"src", "href"} & {name for name, _ in made.attributes}
    assert "://" not in html and "url(" not in html and "@import" not in html
    assert "None" not in made.text and "nan" not in made.text.split()
    assert ("svg" in made.tags) == (change != "without curves" or result["evaluation"] is not None)


def test_an_unbalanced_page_is_seen(result):
    with pytest.raises((AssertionError, IndexError)):
        Page(page(result).replace("</figure>", "", 1))


def test_text_is_escaped(result):
    evil = "<b>&\"'</b>"
    result |= {"source": evil, "out": evil, "next": evil, "plan": evil}
    result["filters"][0] |= {"name": evil, "plan": evil}
    result["evaluation"]["verdict"] = [evil]
    result["evaluation"]["convention"] = result["evaluation"]["conditions"]["hardware"] = evil
    html = page(result)
    assert "<b>&" not in html and Page(html).text.count(evil) >= 9


def test_every_figure_stands_in_the_tables(result):
    sparse = result["evaluation"]
    dense, cells = sparse["dense"], Page(page(result)).cells
    expected = [
        *(f"{row[key]:.4f} ± {row[f'{key}_stderr']:.4f}" for row in (dense, sparse) for key in ["perplexity"]),
        f"{sparse['perplexity_cut']:.4f} ± {sparse['perplexity_cut_stderr']:.4f}",
        *(
            f"{100 * (sparse[key] - 1):+.3f} % ± {100 * sparse[f'{key}_stderr']:.3f} %"
            for key in ("perplexity_ratio", "perplexity_cut_ratio")
        ),
        *(f"{row['bits_per_token']:.4f}" for row in (dense, sparse)),
        *(f"{row['leak']:.1e}" for row in (dense, sparse, *result["filters"])),
        f"{sparse['kl']:.2e}",
        f"{sparse['top1_agreement']:.2%}",
        "{:.2f}x ({:.2f} - {:.2f}), {:,.0f} tokens/s".format(
            sparse["speedup"], *sparse["speedup_quartiles"], sparse["tokens_per_second"]
        ),
        *(f"{b['perplexity']:.4f}" for row in (dense, sparse) for b in row["perplexity_by_position"]),
        *(f[key] for f in result["filters"] for key in ("name", "plan")),
        *(f"{f['density']:.3f}" for f in result["filters"]),
    ]
    assert not set(expected) - set(cells)
    sparse["kl"] += 1
    assert set(expected) - set(Page(page(result)).cells)


def test_verdict_conditions_and_next_command_are_said(result):
    text = Page(page(result)).text
    evaluation = result["evaluation"]
    said = [*evaluation["verdict"], evaluation["convention"], *evaluation["conditions"].values(), result["next"]]
    assert [line for line in said if line is not None and str(line) not in text] == []


@pytest.mark.parametrize(
    ("leak", "stderr", "colour"),
    [(0.0, 0.1, "green"), (LEAK_LIMIT, 0.1, "green"), (1.1 * LEAK_LIMIT, 0.1, "red"), (math.inf, None, "red"),
     (None, 0.1, "green"), (0.0, None, "amber")],
)  # fmt: skip
def test_tone_says_whether_the_figure_can_be_trusted(result, leak, stderr, colour):
    result["evaluation"] |= {"leak": leak, "perplexity_stderr": stderr}
    assert tone(result["evaluation"])[0] == colour
    assert f'class="verdict {colour}"' in page(result)


def test_limit_is_that_of_the_evals():
    assert LEAK_LIMIT == causality.LEAK_LIMIT
    assert tone(None) == ("amber", "not measured")


# --- pictures ------------------------------------------------------------------------------------------------------


def stretches(html):
    """Class, first and last x of every piece of curve, panel by panel, without charts of anything else."""
    pieces = (
        r'<g class="([\w ]+)"><path class="area" d="M([\d.]+),[^"]*"/><path class="line" d="M[^"]* ([\d.]+),[\d.]+"/>'
    )
    panels = [panel for panel in re.findall(r"<svg.*?</svg>", html) if 'class="area"' in panel]
    return [[(kind, float(a), float(b)) for kind, a, b in re.findall(pieces, panel)] for panel in panels]


@pytest.mark.parametrize(
    ("kind", "by_tap", "by_bin"),
    [
        ("split", ["kept", "tail"], ["tail", "tail gone"]),
        ("partial", ["kept", "kept gone"], ["kept"]),
        ("frequency-sparse", ["kept"], ["kept", "kept gone"]),
        ("dense", ["kept"], ["kept"]),
    ],
)
def test_what_is_dropped_is_faded(result, kind, by_tap, by_bin):
    k = torch.randn(3, 64) * torch.exp(-torch.arange(64) / 9)
    result["filters"] = [result["filters"][0] | {"kind": kind, "curves": curves(k, kind)}]
    result["evaluation"] = None
    html = page(result)
    taps, bins = stretches(html)
    assert ([p[0] for p in taps], [p[0] for p in bins]) == (by_tap, by_bin)
    for panel in (taps, bins):
        assert (panel[0][1], panel[-1][2]) == (32, 272)  # the whole width
        assert all(a[2] == b[1] for a, b in pairwise(panel))  # without a gap
    if len(by_tap) == 2:  # 8 of 64 taps is half of a logarithmic axis
        assert taps[0][2] == (32 + 272) / 2
    assert ('class="line whole"' in html) == (kind == "split")


def test_a_comb_alternates(result):
    row = result["filters"][0]
    row["curves"] |= {"kept_band": [[0, 0.25], [0.5, 0.75]], "tail": None, "kept_taps": None}
    bins = stretches(page(result))[1]
    assert [p[0] for p in bins] == ["kept", "kept gone"] * 2


def test_a_filter_of_one_tap_is_drawn(result):
    result["filters"][0]["curves"] = curves(torch.ones(2, 1), "dense")
    Page(page(result))


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


def test_time_is_drawn_to_one_scale(result):
    """Two bars a part, before above after, as long as they took; a part that is gone has one."""
    parts = [("linear", 0.3, 0.15), ("filters <made> anew", 0.1, None), ("norms", 1e-9, 0.06)]
    before = [{"name": name, "seconds": then, "share": then / 0.4} for name, then, _ in parts]
    after = [{"name": name, "seconds": now, "share": now / 0.21} for name, _, now in parts if now]
    result["evaluation"]["parts"] = {"batch": 1, "length": 64, "before": before, "after": after}
    html = page(result)
    bars = re.findall(r'<g class="(\w+)"><rect class="bar" x="0" y="(\d+)" width="([\d.]+)"', html)
    kinds, heights, widths = zip(*bars, strict=True)
    assert kinds == ("whole", "kept", "whole", "whole", "kept")
    assert list(heights) == sorted(heights, key=int) and len(set(heights)) == 5
    longest = float(widths[0])
    assert [float(width) / longest for width in widths[:3]] == pytest.approx([1, 0.5, 1 / 3], rel=1e-2)
    assert float(widths[3]) == 1 and float(widths[4]) / longest == pytest.approx(0.2, rel=1e-2)  # seen, however short
    made = Page(html)
    assert {"300 ms", "75%", "150 ms", "71%", "400 ms", "210 ms", "filters <made> anew", "together"} <= set(made.cells)
    assert "Where the time goes, before and after" in made.text


def test_silence_lies_on_the_floor():
    assert {dB for _, dB in curve(torch.zeros(50))} == {FLOOR_DB}
