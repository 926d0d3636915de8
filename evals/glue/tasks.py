"""The nine tasks of GLUE, and their examples from local files or the hub."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsify.evals.data import evenly
from sparsify.storage.files import TwiceError, once_each
from sparsify.storage.reading import (
    HUB_ID,
    NOTHING,
    LeftOut,
    decoded,
    given,
    half_characters,
    is_stream,
    is_there,
    label,
    lines,
    read_bytes,
    read_text,
)

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
NO_LABEL = (None, "", "-")  # the last where those who labelled it did not agree
SPLITS = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}
MATCHED = {"matched": "matched", "mismatched": "mismatched"}  # of MNLI's splits
STRANGE = 0.1  # share of the labels: where more are none of the task's, the file is another task's
SHOWN = 16  # columns named in a refusal, as many as the widest file of GLUE has
FILE = "a file of examples (JSONL, TSV, parquet)"
Row = Mapping[str, Any]
Placed = tuple[str, Row | str]  # where a row lies, and the row, or what is wrong with it


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
    left_out: LeftOut = NOTHING  # rows of the source that are no examples

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
    strange = next((name for name in typed if plain_task(name) not in TASKS), None)
    if strange is not None:
        meant = get_close_matches(plain_task(strange), TASKS, 1)
        guess = f"did you mean {meant[0]}? The" if meant else "the"
        raise ValueError(f"there is no task {strange!r}; {guess} tasks are {', '.join(TASKS)}, or all")
    return [TASKS[name] for name in dict.fromkeys(map(plain_task, typed))]


def plain_task(name: str) -> str:
    """A task's name as `TASKS` has it, however it is written."""
    return re.sub("[-_ ]", "", name.lower())


def read_examples(src: str | Path, task: Task, split: str = "dev") -> Examples:
    """The labelled examples of one split from `src`: a file, a pipe, a folder of files, or a data set on the hub.

    split: "train", "dev", "test", and "dev_matched" and the like of MNLI.  In a folder the file is called
    TASK.SPLIT.SUFFIX or TASK/SPLIT.SUFFIX (jsonl, tsv as GLUE gives it out, parquet as on the hub); "-" is standard
    input.  Broken rows, of which GLUE's own files have some, are left out: see `Examples.left_out`.  Raises ValueError
    where labels are hidden or unknown or a file is named after another task or split, FileNotFoundError where there is
    no file.
    """
    path = given(src, f"the file or folder that holds {task.title}")
    if path.is_dir():
        path = find_file(path, task, split)
    elif is_there(path) and not is_stream(path):
        check_name(path, task, split)
    elif not is_there(path):
        if not HUB_ID.fullmatch(str(src)):
            raise FileNotFoundError(f"there is neither file nor folder {src}; pass the one that holds {task.title}")
        return examples(numbered(from_hub(str(src), task, split)), task, split, str(src))
    return examples(rows_of(path, task), task, split, label(path))


def dev_splits(src: str | Path, task: Task) -> tuple[str, ...]:
    """The dev sets of a task that `src` holds: of a file or pipe the one that its name tells."""
    if len(task.dev) == 1 or not is_there(src):
        return task.dev
    named = tuple(split for split in task.dev if any(name in Path(src).name for name in names_of(split)))
    if len(named) != 1:
        raise ValueError(
            f"{label(src)} is one file and {task.title} has the dev sets {' and '.join(task.dev)}; "
            f"say which of them it is (--split on the command line)"
        )
    return named


def check_name(path: Path, task: Task, split: str) -> None:
    """Refuse a file whose name, or for a task that of its folder, tells of another task or split than is asked for.

    Names that tell of nothing pass, and so do those that tell of several things with what is asked for among them.
    """
    words = re.split(r"[^a-z0-9]+", path.name.lower())
    glued = {*words, *("".join(pair) for pair in pairwise(words))}  # SST-2 is sst2
    tasks = [name for name in TASKS if name in glued] or [t for t in TASKS if t == plain_task(path.parent.name)]
    if tasks and task.name not in tasks:
        titles = " and ".join(TASKS[name].title for name in tasks)
        raise ValueError(
            f"{label(path)} is named after {titles}, and {task.title} was asked for; pass the file of {task.title}, "
            f"ask for {' or '.join(tasks)}, or rename the file if it is {task.title}"
        )
    asked = re.split(r"[^a-z0-9]+", split.lower())
    for kinds in (SPLITS, MATCHED):
        named = dict.fromkeys(kinds[word] for word in words if word in kinds)
        meant = {kinds[word] for word in asked if word in kinds}
        if named and meant and meant.isdisjoint(named):
            raise ValueError(
                f"{label(path)} is named after the split {' and '.join(named)}, and {split} was asked for; pass the "
                f"file of {split}, or say which split it is (--split on the command line)"
            )


def refuse_one_file(src: str | Path, needed: str) -> None:
    """Refuse a file or pipe where more than one is needed.  needed: what for, as the middle of a sentence."""
    if is_there(src):
        raise ValueError(f"{label(src)} is one file, and {needed}; pass a folder that holds a file for each")


def names_of(split: str) -> tuple[str, str]:
    """A split's name in GLUE's files, and on the hub, whichever of them it is given as."""
    return split.replace("validation", "dev"), split.replace("dev", "validation")


def splits_of(task: Task, asked: str | None, src: str | Path | None = None) -> tuple[str, ...]:
    """The splits of a task to score on, as GLUE's files name them.

    asked: one by either name, None for the dev set.  src: where the data lie, for one file holds one split.
    """
    if asked is not None and not asked.strip():
        raise ValueError("the split has an empty name; pass train, dev or test, or leave it out for the dev set")
    split = names_of(asked or "dev")[0]
    if split != "dev":
        return (split,)
    return task.dev if src is None else dev_splits(src, task)


def find_file(folder: Path, task: Task, split: str) -> Path:
    """The file of a split in a folder, the only one; FileNotFoundError names what was looked for."""
    found: list[Path] = []
    for name in dict.fromkeys(names_of(split)):
        for stem in (f"{task.name}.{name}", f"{task.name}/{name}", f"{task.title}/{name}"):
            shards = sorted(folder.glob(f"{stem}-00000-of-*.parquet"))
            whole = shards if len(shards) == 1 and shards[0].name.endswith("-00001.parquet") else []
            for path in (*(folder / f"{stem}{suffix}" for suffix in SUFFIXES), *whole):
                # the same one again under a link, or where the disk takes cola and CoLA for one name
                if path.is_file() and not any(os.path.samefile(path, other) for other in found):
                    found.append(path)
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds {len(found)} files for the {split} split of {task.title}, "
            f"{' and '.join(str(path.relative_to(folder)) for path in found)}; keep one of them, or pass its path"
        )
    if found:
        return found[0]
    raise FileNotFoundError(
        f"{folder} holds no {split} split of {task.title}: no {task.name}.{split}.jsonl, {task.title}/{split}.tsv "
        f"or the like; add it, or leave {task.name} out"
    )


def rows_of(path: Path, task: Task) -> list[Placed]:
    """The rows of a file, by its suffix; of a pipe, which has none, by how it begins."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if is_stream(path):
        data = read_bytes(path, FILE)
        suffix = ".parquet" if data.startswith(b"PAR1") else ".jsonl" if data.lstrip()[:1] == b"{" else ".tsv"
        text = "" if suffix == ".parquet" else decoded(data, label(path), FILE)
    elif suffix == ".parquet":
        data = path.read_bytes()
    elif suffix in SUFFIXES:
        text = read_text(path, FILE)
    else:
        raise ValueError(f"{path} is no file of examples; pass one of {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        return numbered(from_parquet(data, path))
    return from_tsv(text, task) if suffix == ".tsv" else from_jsonl(text, path)


def numbered(rows: Iterable[Row | str]) -> list[Placed]:
    return [(f"example {number}", row) for number, row in enumerate(rows, start=1)]


def from_jsonl(text: str, path: Path) -> list[Placed]:
    rows: list[Row | str] = []
    for number, line in enumerate(lines(text), start=1):
        if line.strip():
            try:
                row = json.loads(line, object_pairs_hook=once_each)
            except TwiceError as error:
                rows.append(f"has {error.name!r:.60} twice")
                continue
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {label(path)} is not JSON ({error}); fetch the file again"
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} of {label(path)} is no JSON object, expected names and values")
            rows.append(row)
    return numbered(rows)


def from_tsv(text: str, task: Task) -> list[Placed]:
    """GLUE's files quote nothing: a quotation mark is a letter, and a line break in a text cuts its row in two.

    Rows that are cut have too few fields, so neither piece is an example.
    """
    table = [(number, line.split("\t")) for number, line in enumerate(lines(text), start=1) if line.strip()]
    if not table:
        return []
    header = table[0][1]
    if task.name == "cola" and "sentence" not in header and any(len(row) == len(COLA_COLUMNS) for _, row in table):
        header = list(COLA_COLUMNS)
    else:
        del table[0]
    whole = [len(row) == len(header) or (len(row) > len(header) and not any(row[len(header) :])) for _, row in table]
    texts = {name for field in task.fields for name in (field, *ALIASES.get(field, ()))}
    found: list[Placed] = []
    for i, (number, row) in enumerate(table):
        content: Row | str = dict(zip(header, row, strict=False))
        if not whole[i]:
            content = f"has {len(row)} field{'' if len(row) == 1 else 's'}, not {len(header)}"
        elif header[-1] in texts and goes_on(row[-1], [rest for _, rest in unfit(table, whole, i, 1)]):
            content = f"has a text that goes on in line {table[i + 1][0]}"
        elif header[0] in texts and goes_on(row[0], [rest for _, rest in unfit(table, whole, i, -1)]):
            content = f"has a text that begins in line {table[i - 1][0]}"
        found.append((f"line {number}", content))
    return found


def unfit(
    table: Sequence[tuple[int, list[str]]], whole: Sequence[bool], i: int, step: int
) -> Iterable[tuple[int, list[str]]]:
    """The rows beside row i, in the direction of `step`, up to the next one with all its fields."""
    while 0 <= (i := i + step) < len(table) and not whole[i]:
        yield table[i]


def goes_on(text: str, pieces: Sequence[list[str]]) -> bool:
    """Whether a quotation that is open in a text is closed in what lies beside it."""
    marks = sum(field.count('"') for piece in pieces for field in piece)
    return text.count('"') % 2 == 1 and marks % 2 == 1


def from_parquet(data: bytes, path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"reading {label(path)} takes pyarrow; pip install pyarrow, or pass JSONL or TSV") from error
    return parquet.read_table(io.BytesIO(data)).to_pylist()


def from_hub(name: str, task: Task, split: str) -> Iterable[Row]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            f"there is no folder {name}, and a data set of the hub takes `datasets`; pip install datasets, or pass a "
            f"folder with {task.title}"
        ) from error
    return load_dataset(name, task.name, split=names_of(split)[1])


def examples(rows: Sequence[Placed], task: Task, split: str, source: str) -> Examples:
    """Rows as examples, each checked; what is no example is left out, unless that says of the whole file what it is."""
    kept, reasons, hidden, strange = [], [], 0, []
    for place, row in rows:
        content = row if isinstance(row, str) else example_of(row, task)
        if isinstance(content, str):
            reasons.append(f"{place} {content}")
            continue
        texts, value = content
        found = label_of(value, task)
        if found is None:
            strange.append(f"{place} of {source} has the label {value!r:.60}, expected {expected_label(task)}")
            reasons.append(f"{place} has the label {value!r:.60}")
        elif found == HIDDEN:
            hidden += 1
            reasons.append(f"{place} has no label")
        else:
            kept.append((texts, found))
    if not rows:
        raise ValueError(f"{source} holds no examples; fetch it again")
    if len(strange) > STRANGE * (len(kept) + len(strange)):
        raise ValueError(strange[0])
    if not kept and hidden:
        raise ValueError(
            f"{hidden} of {len(rows)} labels in {source} are hidden (-1), as in GLUE's test sets; only GLUE's server "
            f"knows them, so score on the dev split"
        )
    if not kept:
        place, _, reason = reasons[0].partition(" has ")
        raise ValueError(f"{place} of {source} has {reason}{columns_of(rows[0][1])}; is it {task.title}?")
    labels = np.array([found for _, found in kept], dtype=np.int64 if task.classes else np.float64)
    first, *second = zip(*(texts for texts, _ in kept), strict=True)
    return Examples(task, split, first, second[0] if second else None, labels, source, len(kept), LeftOut.of(reasons))


def columns_of(row: Row | str) -> str:
    """The names in a row, as the end of a sentence."""
    if isinstance(row, str):
        return ""
    names = [f"{name:.60}" for name in row]
    return f", it has {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def example_of(row: Row, task: Task) -> tuple[list[str], Any] | str:
    """The texts of a row and what it has for a label, or what is wrong with it."""
    texts = []
    for field in task.fields:
        text = value_of(row, field)
        if not isinstance(text, str):
            return f"has no text {field!r}"
        if not text.strip():
            return f"has an empty text {field!r}"
        if wrong := half_characters(text):
            return f"has a text {field!r} that {wrong}"
        texts.append(text)
    return texts, value_of(row, "label")


def value_of(row: Row, field: str) -> Any:
    """What a row holds under this name, or under another one for it; None for nothing."""
    return next((row[name] for name in (field, *ALIASES.get(field, ())) if name in row), None)


def label_of(value: Any, task: Task) -> float | None:
    """A label as a number; HIDDEN where there is none, None where it is none of the task's."""
    if value in NO_LABEL:
        return HIDDEN
    if value in task.classes:
        return task.classes.index(value)
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    fits = found == HIDDEN or (found in range(len(task.classes)) if task.classes else np.isfinite(found))
    return found if fits else None


def expected_label(task: Task) -> str:
    """What a label of a task is."""
    return f"one of {', '.join(task.classes)}, or 0 to {len(task.classes) - 1}" if task.classes else "a number"
