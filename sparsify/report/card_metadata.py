"""The front matter of a model card, and the files that offer a figure to a leaderboard: metadata for machines."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

import yaml  # type: ignore[import-untyped]

from .schema import Conversion, Evaluation

FRONT_MATTER = re.compile(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
LONGEST = 1 << 15  # characters of a front matter that are read
WORD, WORDS = 200, 50  # characters in a value, values in a list
BRACKETS = 500  # opening ones; thousands inside each other keep the parser busy for long
SINGLE = ("license", "license_name", "license_link", "pipeline_tag")
LISTS = ("language", "datasets", "tags")
TAGS = ("sparsify", "long-convolution")
BENCHMARK = re.compile(r"([\w.-]+/[\w.-]+):([\w.-]+)")

Metadata = dict[str, Any]


def of_source(readme: str) -> Metadata:
    """What the card of a source says that holds for a copy of it, too: licence, languages, data sets, tags, task.

    Values are texts or lists of texts; anything else, and what is no YAML, is left out.
    """
    match = FRONT_MATTER.match(readme[:LONGEST])
    if match is None or match[1].count("[") > BRACKETS:
        return {}
    try:
        # every scalar a text, so that Norwegian stays `no`; no merge keys, which could be made to grow without end
        data = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(data, dict):
        return {}
    found: Metadata = {key: data[key] for key in SINGLE if is_word(data.get(key))}
    for key in LISTS:
        values = data.get(key)
        if words := [w for w in (values if isinstance(values, list) else [values])[:WORDS] if is_word(w)]:
            found[key] = words
    return found


def is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= WORD and value.isprintable()


def called(result: Conversion) -> str:
    """What the model is called: as the repository it goes to, or as its folder."""
    return PurePath(result.repo or result.out).name


def front_matter(result: Conversion) -> str:
    """YAML between two rules, from what `sparsify convert` found."""
    origin = result.origin
    data: Metadata = {"library_name": "sparsify", **{key: value for key, value in origin.items() if key != "tags"}}
    if result.revision:  # the source has an address on the hub
        data |= {"base_model": result.source, "base_model_relation": "quantized"}
    data["tags"] = list(dict.fromkeys([*TAGS, *origin.get("tags", ())]))
    if index := model_index(result):
        data["model-index"] = index
    return f"---\n{as_yaml(data)}---\n"


def as_yaml(data: Any) -> str:
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def figure(evaluation: Evaluation) -> tuple[str, float]:
    """The one figure that stands for a model: perplexity without what it reads of the future, and its name."""
    if evaluation.perplexity_cut is not None:
        return "perplexity, negative lags cut", evaluation.perplexity_cut
    return evaluation.figure, evaluation.perplexity


def model_index(result: Conversion) -> list[Metadata]:
    """That figure with its data and conditions, as the hub reads it from a card; [] where nothing was measured."""
    if not (evaluation := result.evaluation):
        return []
    name, value = figure(evaluation)
    task = {"type": result.origin.get("pipeline_tag", "text-generation" if result.causal else "fill-mask")}
    dataset = {"name": result.data, "type": result.data, "args": {"convention": evaluation.convention}}
    metric = {"name": name, "type": evaluation.figure, "value": value}
    return [{"name": called(result), "results": [{"task": task, "dataset": dataset, "metrics": [metric]}]}]


def parse_benchmark(text: str | None) -> Metadata | None:
    """A data set on the hub and a task of it.  text: "ORG/DATASET:TASK", or None."""
    if text is None:
        return None
    if not (match := BENCHMARK.fullmatch(text)):
        raise ValueError(f"--benchmark is ORG/DATASET:TASK, a data set on the hub and a task of it, got {text!r}")
    return {"id": match[1], "task_id": match[2]}


def eval_results(result: Conversion) -> dict[str, str]:
    """File name -> YAML that offers the figure to a benchmark's leaderboard; {} where the data is of none."""
    benchmark, evaluation = result.benchmark, result.evaluation
    if not benchmark or not evaluation:
        return {}
    name, value = figure(evaluation)
    notes = f"{name}; {evaluation.convention}"
    entry = {"dataset": benchmark, "value": value, "date": evaluation.conditions.date, "notes": notes}
    return {f".eval_results/{benchmark['id'].rpartition('/')[2]}.yaml": as_yaml([entry])}
