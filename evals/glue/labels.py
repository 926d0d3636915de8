"""What a config.json says of a classifier: the task that it was fine-tuned for, and which label each logit is of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .tasks import TASKS, Task, plain_task

MEMORY = "sparsify_finetune"  # in config.json: how a classifier was made, which `eval glue` goes by
NUMBERED = re.compile(r"(?:label|class)?(\d+)")  # as transformers calls labels that have no names
SYNONYMS = {  # plain name of a class -> what else people call it
    "negative": ("neg",),
    "positive": ("pos",),
    "unacceptable": ("ungrammatical",),
    "acceptable": ("grammatical",),
    "notequivalent": ("notparaphrase", "nonequivalent"),
    "equivalent": ("paraphrase",),
    "notduplicate": ("notparaphrase", "nonduplicate"),
    "duplicate": ("paraphrase",),
    "notentailment": ("nonentailment",),
}


def described(task: Task) -> dict[str, Any]:
    """What transformers wants to find in the config.json of a classifier of this task."""
    names = task.classes or ("score",)
    return {
        "num_labels": task.outputs,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": "single_label_classification" if task.classes else "regression",
        "finetuning_task": task.name,
    }


def fine_tuned_for(config: Mapping[str, Any]) -> Task | None:
    """The task of GLUE that a model was fine-tuned for, as far as its config.json tells."""
    made = config.get(MEMORY)
    named = (made.get("task") if isinstance(made, dict) else None, config.get("finetuning_task"))
    return next((TASKS[name] for name in map(plain_task, filter(None, map(text_of, named))) if name in TASKS), None)


def check_task(config: Mapping[str, Any], task: Task, who: str) -> None:
    """Refuse a model that was fine-tuned for another task.  who: what to call the model."""
    made_for = fine_tuned_for(config)
    if made_for is not None and made_for != task:
        raise ValueError(
            f"{who} was fine-tuned for {made_for.title}, and {task.title} asks for something else; pass a model of "
            f"{task.title}, or --other-task to score this one all the same"
        )


def label_order(config: Mapping[str, Any], task: Task, who: str) -> list[int] | None:
    """Which column of a model's logits is each class of the task, None for the same order.

    Labels without names, LABEL_0 and so on, stand for the task's classes by their numbers.  Raises ValueError where
    the labels are not the task's.  config: config.json.  who: what to call the model.
    """
    if not task.classes:
        return None
    orders = [
        order_of(names, task, who)
        for names in (by_number(config.get("id2label"), who), by_name(config.get("label2id"), who))
        if names and not numbered(names.values())
    ]
    if len(orders) == 2 and orders[0] != orders[1]:
        raise ValueError(f"id2label and label2id in config.json of {who} contradict each other; mend one of them")
    return orders[0] if orders and orders[0] != list(range(len(task.classes))) else None


def order_of(names: Mapping[int, str], task: Task, who: str) -> list[int]:
    """The column of every class of the task.  names: column -> label."""
    known = {plain(c): i for i, c in enumerate(task.classes)}
    known |= {other: i for name, i in list(known.items()) for other in SYNONYMS.get(name, ())}
    known |= {f"{kind}{i}": i for kind in ("label", "class", "") for i in range(len(task.classes))}
    classes = {known.get(plain(name)): column for column, name in names.items()}
    if None in classes or len(classes) != len(names) or len(names) != len(task.classes):
        shown = ", ".join(f"{name:.40}" for name in list(names.values())[:8])
        raise ValueError(
            f"{who} has the labels {shown}, and {task.title} asks for {', '.join(task.classes)}; pass a model of "
            f"{task.title}, or mend id2label in its config.json"
        )
    return [classes[i] for i in range(len(task.classes))]


def numbered(names: Iterable[str]) -> bool:
    """Whether labels are numbers that rise from 0 or another one, which says nothing but their order."""
    found = [NUMBERED.fullmatch(plain(name)) for name in names]
    numbers = [int(match[1]) for match in found if match]
    return len(numbers) == len(found) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def by_number(stored: Any, who: str) -> dict[int, str]:
    """config.json's id2label in the order of its columns."""
    if stored is None:
        return {}
    pairs = dict(enumerate(stored)) if isinstance(stored, list) else stored
    if not isinstance(pairs, dict) or not all(str(column).isdecimal() for column in pairs):
        raise ValueError(f"config.json of {who} has {stored!r:.60} for id2label, expected a label for each number")
    return dict(sorted((int(column), str(name)) for column, name in pairs.items()))


def by_name(stored: Any, who: str) -> dict[int, str]:
    """config.json's label2id in the order of its columns."""
    if stored is None:
        return {}
    if not isinstance(stored, dict) or not all(type(column) is int for column in stored.values()):
        raise ValueError(f"config.json of {who} has {stored!r:.60} for label2id, expected a number for each label")
    return dict(sorted((column, name) for name, column in stored.items()))


def plain(name: str) -> str:
    """A label without case and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


def text_of(stored: Any) -> str:
    return stored if isinstance(stored, str) else ""
