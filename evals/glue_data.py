"""The nine tasks of GLUE, and their examples from local files or the hub."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data import evenly, read_text

HIDDEN = -1  # the label of an example whose label is not told, as in GLUE's test sets
NOT_ENTAILED = ("entailment", "not_entailment")


@dataclass(frozen=True)
class Task:
    """What a task asks, and how its answers are scored.  Names and labels are those of the hub's nyu-mll/glue."""

    name: str
    title: str
    fields: tuple[str, ...]  # columns that hold the text: one sentence, or a pair
    classes: tuple[str, ...]  # in the order of their labels; none where a score is asked for
    metrics: tuple[str, ...]  # as GLUE reports it, names of `metrics.METRICS`
    m2_bert: tuple[str, ...]  # those that M2-BERT's own code reports
    dev: tuple[str, ...] = ("dev",)  # splits to score on

    @property
    def outputs(self) -> int:
        """Columns of the logits."""
        return len(self.classes) or 1


TASKS = {
    task.name: task
    for task in (
        Task("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews",), ("matthews",)),
        Task("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), ("accuracy",)),
        Task("mrpc", "MRPC", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1"), ("f1",)),
        Task("stsb", "STS-B", ("sentence1", "sentence2"), (), ("pearson", "spearman"), ("spearman",)),
        Task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"),
             ("accuracy", "f1")),
        Task("mnli", "MNLI", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",),
             ("accuracy",), ("dev_matched", "dev_mismatched")),
        Task("qnli", "QNLI", ("question", "sentence"), NOT_ENTAILED, ("accuracy",), ("accuracy",)),
        Task("rte", "RTE", ("sentence1", "sentence2"), NOT_ENTAILED, ("accuracy",), ("accuracy",)),
        Task("wnli", "WNLI", ("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",), ()),
    )
}  # fmt: skip

# What else a column is called, in GLUE's own TSV files
ALIASES = {
    "sentence1": ("#1 String",),
    "sentence2": ("#2 String",),
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    "label": ("gold_label", "score", "is_duplicate", "Quality"),
}
COLA_COLUMNS = ("source", "label", "star", "sentence")  # GLUE's CoLA has no header
SUFFIXES = (".jsonl", ".tsv", ".parquet")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
Row = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts and what is right of them."""

    task: Task
    split: str
    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None  # second texts, of a task with pairs
    labels: NDArray[np.generic]  # (N,) int64 classes, or float64 scores
    source: str  # the file, or the data set on the hub
    available: int  # examples there were before a limit

    def __len__(self) -> int:
        return len(self.texts)

    def at(self, rows: Sequence[int]) -> Examples:
        """These examples, in this order."""
        pairs = None if self.pairs is None else tuple(self.pairs[i] for i in rows)
        return replace(self, texts=tuple(self.texts[i] for i in rows), pairs=pairs, labels=self.labels[list(rows)])

    def spread(self, limit: int) -> Examples:
        """At most `limit` of these examples, evenly spaced."""
        return self.at(evenly(len(self), limit))


def find_tasks(names: str) -> list[Task]:
    """The tasks of a list like "sst2,cola", in its order, none twice; "all" is all nine."""
    typed = list(TASKS) if names == "all" else [name.strip() for name in names.split(",")]
    if strange := next((name for name in typed if plain_task(name) not in TASKS), None):
        meant = get_close_matches(plain_task(strange), TASKS, 1)
        guess = f"did you mean {meant[0]}? The" if meant else "the"
        raise ValueError(f"there is no task {strange!r}; {guess} tasks are {', '.join(TASKS)}, or all")
    return [TASKS[name] for name in dict.fromkeys(map(plain_task, typed))]


def plain_task(name: str) -> str:
    """A task's name as `TASKS` has it, however it is written."""
    return re.sub("[-_ ]", "", name.lower())


def read_examples(src: str | Path, task: Task, split: str = "dev") -> Examples:
    """The labelled examples of one split from `src`: a file, a folder of files, or a data set on the hub.

    split: "train", "dev", "test", and "dev_matched" and the like of MNLI.  In a folder the file is called
    TASK.SPLIT.SUFFIX or TASK/SPLIT.SUFFIX (jsonl, tsv as GLUE gives it out, parquet as on the hub).  Raises ValueError
    where labels are hidden or unknown, FileNotFoundError where there is no file.
    """
    path = Path(src)
    if path.is_dir():
        path = find_file(path, task, split)
    elif not path.is_file():
        if not HUB_ID.fullmatch(str(src)):
            raise FileNotFoundError(f"there is neither file nor folder {src}; pass the one that holds {task.title}")
        return examples(from_hub(str(src), task, split), task, split, str(src))
    return examples(rows_of(path, task), task, split, str(path))


def names_of(split: str) -> tuple[str, str]:
    """A split's name in GLUE's files, and on the hub, whichever of them it is given as."""
    return split.replace("validation", "dev"), split.replace("dev", "validation")


def splits_of(task: Task, asked: str | None) -> tuple[str, ...]:
    """The splits of a task to score on, as GLUE's files name them.  asked: one by either name, None for the dev set."""
    split = names_of(asked or "dev")[0]
    return task.dev if split == "dev" else (split,)


def find_file(folder: Path, task: Task, split: str) -> Path:
    """The file of a split in a folder; FileNotFoundError names what was looked for."""
    for name in dict.fromkeys(names_of(split)):
        for stem in (f"{task.name}.{name}", f"{task.name}/{name}", f"{task.title}/{name}"):
            for suffix in SUFFIXES:
                if (path := folder / f"{stem}{suffix}").is_file():
                    return path
            shards = sorted(folder.glob(f"{stem}-00000-of-*.parquet"))
            if len(shards) == 1 and shards[0].name.endswith("-00001.parquet"):
                return shards[0]
    raise FileNotFoundError(
        f"{folder} holds no {split} split of {task.title}: no {task.name}.{split}.jsonl, {task.title}/{split}.tsv "
        f"or the like; add it, or leave {task.name} out"
    )


def rows_of(path: Path, task: Task) -> Iterable[Row]:
    """The rows of a file, by its suffix."""
    if path.suffix == ".parquet":
        return from_parquet(path)
    text = read_text(path)
    if path.suffix == ".tsv":
        return from_tsv(text, task)
    if path.suffix == ".jsonl":
        return from_jsonl(text, path)
    raise ValueError(f"{path} is no file of examples; pass one of {', '.join(SUFFIXES)}")


def from_jsonl(text: str, path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is not JSON ({error}); fetch the file again") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {path} is no JSON object, expected names and values")
            rows.append(row)
    return rows


def from_tsv(text: str, task: Task) -> list[Row]:
    """GLUE's files quote nothing: a quotation mark is a letter."""
    lines = csv.reader(text.split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    table = [line for line in lines if line]
    if task.name == "cola" and "sentence" not in table[0] and len(table[0]) == len(COLA_COLUMNS):
        table.insert(0, list(COLA_COLUMNS))
    return [dict(zip(table[0], line, strict=False)) for line in table[1:]]


def from_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"reading {path} takes pyarrow; pip install pyarrow, or pass JSONL or TSV") from error
    return parquet.read_table(path).to_pylist()


def from_hub(name: str, task: Task, split: str) -> Iterable[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"there is no folder {name}, and a data set of the hub takes `datasets`; pip install datasets, or pass a "
            f"folder with {task.title}"
        ) from error
    return load_dataset(name, task.name, split=names_of(split)[1])


def examples(rows: Iterable[Row], task: Task, split: str, source: str) -> Examples:
    """Rows as examples, each checked."""
    columns: list[list[str]] = [[] for _ in task.fields]
    labels = []
    for number, row in enumerate(rows, start=1):
        for field, column in zip(task.fields, columns, strict=True):
            text = value_of(row, field)
            if not isinstance(text, str):
                raise ValueError(
                    f"example {number} of {source} has no text {field!r}, it has {', '.join(row)}; is it {task.title}?"
                )
            column.append(text)
        labels.append(label_of(value_of(row, "label"), task, number, source))
    if not labels:
        raise ValueError(f"{source} holds no examples; fetch it again")
    if hidden := labels.count(HIDDEN):
        raise ValueError(
            f"{hidden} of {len(labels)} labels in {source} are hidden (-1), as in GLUE's test sets; only GLUE's server "
            f"knows them, so score on the dev split"
        )
    kept = np.array(labels, dtype=np.int64 if task.classes else np.float64)
    pairs = tuple(columns[1]) if len(columns) > 1 else None
    return Examples(task, split, tuple(columns[0]), pairs, kept, source, len(kept))


def value_of(row: Row, field: str) -> Any:
    """What a row holds under this name, or under another one for it; None for nothing."""
    return next((row[name] for name in (field, *ALIASES.get(field, ())) if name in row), None)


def label_of(value: Any, task: Task, number: int, source: str) -> float:
    """A label as a number; HIDDEN where there is none."""
    if value is None:
        return HIDDEN
    if value in task.classes:
        return task.classes.index(value)
    try:
        label = float(value)
    except (TypeError, ValueError):
        label = np.nan
    fits = label == HIDDEN or (label in range(len(task.classes)) if task.classes else np.isfinite(label))
    if not fits:
        known = f"one of {', '.join(task.classes)}, or 0 to {len(task.classes) - 1}" if task.classes else "a number"
        raise ValueError(f"example {number} of {source} has the label {value!r}, expected {known}")
    return label
