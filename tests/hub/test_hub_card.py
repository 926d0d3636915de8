"""The model card: what it takes over from the source, and that every figure on it is in report.json."""

import json
import re

import pytest
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from layouts import write_tiny
from reports import card

from sparsify.cli.main import main
from sparsify.report.card_metadata import eval_results, front_matter, of_source
from sparsify.report.schema import Conversion

SOURCE_CARD = """---
license: other
license_name: a-licence-of-its-own
language: no
tags: [dna, "long: context", sparsify]
datasets:
- org/genome
pipeline_tag: text-generation
model-index: [{name: theirs}]
extra_gated_prompt: agree!
---
# A source
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What `sparsify convert --data --benchmark` writes."""
    room = tmp_path_factory.mktemp("card")
    source = write_tiny(room / "tiny")
    (source / "README.md").write_text(SOURCE_CARD)
    letters = torch.randint(4, (1000,), generator=torch.Generator().manual_seed(0))
    (room / "dna.txt").write_text("".join("ACGT"[i] for i in letters))
    asked = [
        source,
        room / "out",
        "--split",
        "8:0.25",
        "--data",
        room / "dna.txt",
        "--benchmark",
        "org/genome:held-out",
    ]
    done = CliRunner().invoke(main, ["convert", *map(str, asked)])
    assert done.exit_code == 0, done.output
    return room / "out"


@pytest.fixture
def report(out):
    return json.loads((out / "report.json").read_text())


def leaves(data):
    """Every number and text of a report."""
    if isinstance(data, dict | list):
        for inner in data.values() if isinstance(data, dict) else data:
            yield from leaves(inner)
    else:
        yield data


NUMBER = re.compile(r"(?<![\w.])[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?(?![\w.]*[A-Za-z])")


def unknown_figures(text, report):
    """Numbers in `text` that no number of `report` is when rounded like them, nor any of its texts holds."""
    values = [leaf for leaf in leaves(report) if isinstance(leaf, int | float) and not isinstance(leaf, bool)]
    words = " ".join(leaf for leaf in leaves(report) if isinstance(leaf, str))
    known = set(NUMBER.findall(words))

    def same(shown):
        digits = len(shown.partition(".")[2].partition("e")[0])
        style = f".{digits}e" if "e" in shown else f".{digits}f"
        number = float(shown.replace(",", ""))
        forms = (1, 100, 1e3, 1e-3, 1e-6)  # as it is, as a percentage, in milliseconds, in kB and MB
        shifted = [value * scale for value in values for scale in forms] + [100 * (value - 1) for value in values]
        return any(float(format(value, style)) == number for value in shifted)

    return [shown for shown in NUMBER.findall(text) if shown not in known and not same(shown)]


def test_every_figure_on_the_card_is_in_the_report(out, report):
    text = (out / "README.md").read_text()
    body = text.split("\n---\n", 1)[1].replace(f"sparsify {report['evaluation']['conditions']['sparsify']}", "")
    assert len(NUMBER.findall(body)) > 30
    assert unknown_figures(body, report) == []
    assert unknown_figures(body + " 3.14159 and 17,123,456", report) == ["3.14159", "17,123,456"]
    altered = json.loads(json.dumps(report))
    altered["evaluation"]["top1_agreement"] *= 0.9
    assert unknown_figures(body, altered)


def test_figures_have_their_conditions(out, report):
    text, evaluation = (out / "README.md").read_text(), report["evaluation"]
    for said in (evaluation["convention"], evaluation["conditions"]["hardware"], "dna.txt", *evaluation["verdict"]):
        assert said in text
    assert "The model is causal, and under this plan not quite" in text
    assert all(f"| {row['name']} | {row['plan']} |" in text for row in report["filters"])


def test_front_matter_keeps_what_holds_for_a_copy(out, report):
    data = ModelCard.load(out / "README.md").data.to_dict()
    assert data["license"] == "other" and data["license_name"] == "a-licence-of-its-own"
    assert data["language"] == ["no"] and data["datasets"] == ["org/genome"]
    assert data["tags"] == ["sparsify", "long-convolution", "dna", "long: context"]
    assert "extra_gated_prompt" not in data and "base_model" not in data  # a folder has no address on the hub
    published = front_matter(Conversion.from_dict(report | {"source": "org/hyena", "revision": "0" * 40}))
    assert "base_model: org/hyena\n" in published


def test_the_hub_reads_the_figure_with_its_conditions(out, report):
    (result,) = ModelCard.load(out / "README.md").data.eval_results
    evaluation = report["evaluation"]
    assert result.metric_value == evaluation["perplexity_cut"] != evaluation["perplexity"]
    assert result.metric_name == "perplexity, negative lags cut" and result.dataset_name == "dna.txt"
    assert result.dataset_args == {"convention": evaluation["convention"]} and result.task_type == "text-generation"


def test_a_benchmark_is_offered_the_figure(out, report):
    from huggingface_hub import parse_eval_result_entries

    (entry,) = parse_eval_result_entries(yaml.safe_load((out / ".eval_results" / "genome.yaml").read_text()))
    assert (entry.dataset_id, entry.task_id) == ("org/genome", "held-out")
    assert entry.value == report["evaluation"]["perplexity_cut"]
    assert entry.date == report["evaluation"]["conditions"]["date"] and "negative lags cut" in entry.notes
    for missing in ("benchmark", "evaluation"):
        assert eval_results(Conversion.from_dict(report | {missing: None})) == {}


def test_the_card_is_called_like_the_repository_it_goes_to(report):
    assert "\n# out\n" in card(report) and 'load("out")' in card(report)
    text = card(report | {"repo": "me/hyena-sparse"})
    assert "\n# hyena-sparse\n" in text and 'load("me/hyena-sparse")' in text and "- name: hyena-sparse\n" in text


def test_nothing_measured_nothing_claimed(report):
    text = card(report | {"evaluation": None})
    assert "model-index" not in text and "perplexity |" not in text and "What it costs" not in text


def test_a_model_that_looks_both_ways_or_keeps_to_the_past(report):
    assert "reads both ways" in card(report | {"causal": False})
    rows = [{**row, "leak": 0.0} for row in report["filters"]]
    assert "stays so exactly" in card(report | {"filters": rows})


def test_nothing_published_tells_where_folders_lie(out):
    texts = [path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".md", ".html", ".yaml")]
    assert len(texts) == 8 and not [text for text in texts if str(out.parent) in text]


@pytest.mark.parametrize(
    "hostile",
    [
        "---\nlicense: [mit, 3]\ntags: {a: b}\n---",
        "---\nlicense: |\n  mit\n  # heading\n---",
        "---\n!!python/object/apply:os.system ['true']\n---",
        "---\nlicense: &a [*a]\n---",
        "---\ntags: " + "[" * 10000 + "\n---",
        "---\nlicense: " + "x" * 1000 + "\n---",
        "---\n\tlicense: mit\n---",
        "---\nlicense: mit\n",
        "license: mit\n",
        "---\n- license\n---",
        "---\n? [a, b]\n: c\n---",
        "",
    ],
)
def test_a_card_that_makes_no_sense_tells_nothing(hostile):
    assert of_source(hostile) == {}


def test_names_that_grow_without_end_are_not_followed():
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30))]
    merged = ["b0: &b0 {x: y}", *(f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}" for i in range(1, 30))]
    assert of_source("\n".join(["---", "license: mit", *lines, *merged, "---"])) == {"license": "mit"}


def test_a_byte_order_mark_and_windows_lines():
    assert of_source("\ufeff---\r\nlicense: mit\r\ntags: [a]\r\n---\r\n") == {"license": "mit", "tags": ["a"]}
