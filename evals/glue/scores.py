"""GLUE scores of models on the same examples, with the test that tells a loss from chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sparsify.report.schema import Average, Figure

from .metrics import METRICS, Values
from .significance import LEVEL, Difference, bootstrap, mcnemar
from .tasks import TASKS, Examples, Task

Scores = Callable[[Sequence[str], Sequence[str] | None], Tensor]
"""Texts and, where the task has pairs, second texts -> logits (B, classes), or (B, 1) for a score; any float dtype."""


def answers(
    variants: Mapping[str, Scores],
    examples: Examples,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Values]:
    """What every variant says of every example: name -> (N,), int64 classes or float64 scores.

    All variants answer a batch before the next one.  progress(done, total) is called in examples.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1 example, got {batch_size}")
    found: dict[str, list[Values]] = {name: [] for name in variants}
    for start in range(0, len(examples), batch_size):
        rows = slice(start, start + batch_size)
        texts, pairs = examples.texts[rows], examples.pairs and examples.pairs[rows]
        for name, scores in variants.items():
            with torch.no_grad():
                logits = scores(texts, pairs)
            found[name].append(decide(logits, examples.task, len(texts), f"variant {name!r}"))
        if progress is not None:
            progress(min(start + batch_size, len(examples)), len(examples))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def decide(logits: Tensor, task: Task, count: int, who: str) -> Values:
    """The likeliest class of every row of logits, or the score itself: (B,) int64 or float64."""
    if logits.shape != (count, task.outputs):
        wanted = f"{task.outputs} classes" if task.classes else "one score"
        raise ValueError(
            f"{who} gave {tuple(logits.shape)} for {count} examples of {task.title}, which asks for {wanted}; "
            f"pass a model that was fine-tuned on {task.title}"
        )
    if not logits.isfinite().all():
        raise ValueError(f"{who} gave infinite or undefined scores; try float32, or look at what was swapped in")
    found = logits.double().cpu()
    return (found.argmax(-1) if task.classes else found[:, 0]).numpy()


def figures(examples: Examples, answers: Mapping[str, Values], seed: int = 0) -> list[Figure]:
    """The metrics of a task for one split, and the second variant against the first.  answers: by variant."""
    if not 1 <= len(answers) <= 2:
        raise ValueError(f"got {len(answers)} variants, expected the dense model, or it and one other")
    found = []
    for name in examples.task.metrics:
        metric = METRICS[name]
        values = {variant: metric(answer, examples.labels) for variant, answer in answers.items()}
        versus: tuple[float, list[float], float, str] | tuple[None, ...] = (None,) * 4
        if len(answers) == 2:
            first, second = answers.values()
            found_by, test = compared(name, first, second, examples.labels, seed)
            versus = found_by.difference, [found_by.low, found_by.high], found_by.p_value, test
        found.append(Figure(examples.task.name, examples.split, name, len(examples), values, *versus))
    return found


def compared(name: str, first: Values, second: Values, labels: Values, seed: int) -> tuple[Difference, str]:
    """A metric of the second model less that of the first, and the test: an exact one where there is one."""
    if name != "accuracy":
        return bootstrap(METRICS[name], first, second, labels, seed=seed), "bootstrap"
    exact, metric = mcnemar(first == labels, second == labels), METRICS[name]
    difference = metric(second, labels) - metric(first, labels)
    return Difference(difference, exact.low, exact.high, exact.p_value, samples=0), "McNemar"


def agreement(answers: Mapping[str, Values]) -> float | None:
    """Share of examples of which two variants say the same; None for one variant."""
    return float(np.mean(np.equal(*answers.values()))) if len(answers) == 2 else None


def average(found: Sequence[Figure]) -> Average | None:
    """The mean over the tasks that were scored, as GLUE has it; None for fewer than two, which have no mean."""
    tasks = tuple(task for task in TASKS if any(figure.task == task for figure in found))
    if len(tasks) < 2:
        return None
    values = {}
    for variant in found[0].values:
        means = [np.mean([figure.values[variant] for figure in found if figure.task == task]) for task in tasks]
        values[variant] = float(np.mean(means))
    missing = tuple(task for task in TASKS if task not in tasks)
    splits = {figure.split for figure in found if figure.task == "mnli"}
    halved = "mnli" in tasks and splits != set(TASKS["mnli"].dev)
    return Average(values, tasks, missing, average_convention(tasks, missing, halved))


def m2_bert_average(found: Sequence[Figure]) -> Average | None:
    """The mean over what M2-BERT's own code reports, as its published ones are; None if that is `average`."""
    theirs = [figure for figure in found if figure.metric in TASKS[figure.task].m2_bert]
    mean = average(theirs)
    if mean is None or len(theirs) == len(found):
        return None
    return replace(mean, convention=f"{mean.convention}; of each task what M2-BERT's own code reports")


def average_convention(tasks: Sequence[str], missing: Sequence[str], halved: bool) -> str:
    """What a mean over these tasks is, in words that travel with the number."""
    if not missing:
        text = "GLUE average over all nine tasks"
    elif tuple(missing) == ("wnli",):
        text = "GLUE average over eight tasks, without wnli, as most papers have it"
    else:
        text = f"mean over {len(tasks)} of 9 tasks, no GLUE average: {', '.join(missing)} missing"
    return text + (", mnli with one of its two dev sets" if halved else "")


def verdict(found: Sequence[Figure]) -> list[str]:
    """What the figures of two variants come to, a plain sentence each; none where there is just one."""
    sentences = []
    for figure in found:
        if (difference := figure.difference) is None or (p_value := figure.p_value) is None:
            continue
        (first, before), (second, after) = figure.values.items()
        split = f" {figure.split}" if len(TASKS[figure.task].dev) > 1 else ""
        sentence = (
            f"{TASKS[figure.task].title}{split} {figure.metric}: {second} {after:.4f} against {first} {before:.4f}"
        )
        p = f"p = {p_value:.2g}, {figure.test}"
        if difference == 0:
            sentences.append(f"{sentence}, the same")
        elif p_value < LEVEL:
            sentences.append(f"{sentence}, {points(difference)}, more than chance explains ({p})")
        else:
            sentences.append(f"{sentence}, {points(difference)}, which {figure.n} examples cannot tell from 0 ({p})")
    return sentences


def points(difference: float) -> str:
    """A difference of metrics in hundredths."""
    return f"{100 * difference:+.2f} points"
