"""A short fine-tune on a task of GLUE, which goes on where it was interrupted."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsify.report.schema import Finetuning
from sparsify.storage.reading import given, in_utf8

from .checkpoints import at_least, described, open_checkpoint, operators, refuse_overlap
from .commands import program, quoted
from .glue import tell_left_out
from .progress import KeptRun, Progress, counting, goes_on_from, noted, say, session
from .texts import convention, padded, trained_with

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from torch import nn

    from sparsify.converters import Pretrained
    from sparsify.evals.glue.finetune import Recipe, Tokens
    from sparsify.evals.glue.tasks import Examples, Task

SAVE_EVERY = 200  # steps of a fine-tune


def finetune(
    model: str, task: str, data: str, out: str | Path, *, seed: int = 19, limit: int | None = None,
    lr: float | None = None, weight_decay: float | None = None, epochs: int | None = None, batch: int | None = None,
    patience: int | None = None, pad_to: int | None = None, revision: str | None = None,
    options: Mapping[str, Any] | None = None, device: str | None = None, progress: Progress | None = None,
) -> Finetuning:  # fmt: skip
    """Fine-tune a model on a task of GLUE and write the classifier to a folder.

    If the model was sparsified its convolutions stay as planned, and all else learns.  Interrupted, the same call goes
    on where it was.

    Args:
        model: A folder or a hub id, ORG/NAME.
        task: A task of GLUE.
        data: Folder with examples (JSONL, TSV, parquet), or a data set on the hub as nyu-mll/glue.
        out: Folder for the classifier, a new one.
        seed: Seed of the fresh head and of the order of the examples.
        limit: Examples to train on, evenly spaced; None takes all.
        lr: Learning rate at its peak; None, here and below, takes that of M2-BERT's recipe for the task.
        weight_decay: Weight decay of the optimiser.
        epochs: Passes over the examples.
        batch: Examples a step.
        patience: Evaluations without a better one before it stops.
        pad_to: Tokens that every text is padded to; 0 has each at its own length, None pads as the model was
            fine-tuned, else to 128.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it the `best` score on the dev set, all `evaluations`, the `recipe`,
        and `next`, the command that scores the classifier.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
    """
    from sparsify.evals.glue.finetune import RECIPES
    from sparsify.evals.glue.tasks import find_tasks, read_examples, refuse_one_file

    at_least(0, seed=seed, pad_to=pad_to)
    at_least(1, limit=limit)
    out, data = Path(out), str(data)
    changes = {"lr": lr, "weight_decay": weight_decay, "epochs": epochs, "batch": batch, "patience": patience}
    with session(progress):
        asked, *others = find_tasks(task)
        if others:
            raise ValueError(f"a model is fine-tuned on one task, got {task}; run this once for each")
        if out.exists():
            raise ValueError(f"{out} is there already; name a new folder")
        in_utf8(out, "the folder")
        given(model, "a folder, or ORG/NAME")
        refuse_overlap(out, checkpoint=model, data=given(data, f"the folder that holds {asked.title}"))
        changed: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        recipe = replace(RECIPES[asked.name], **changed)
        refuse_one_file(data, "a fine-tune takes a training set and a dev set")
        train, dev = read_examples(data, asked, "train"), read_examples(data, asked, asked.dev[0])
        for examples in (train, dev):
            tell_left_out(examples)
        p = open_checkpoint(model, revision, options, device)
        length = padded(p, pad_to, trained_with(p))
        score = f"{program()} eval glue {quoted(out)} --task {asked.name} --data {quoted(data)}"
        return trained(p, train.spread(limit) if limit else train, dev, recipe, seed, length, out, score)


def trained(
    p: Pretrained, train: Examples, dev: Examples, recipe: Recipe, seed: int, length: int, out: Path,
    score: str,
) -> Finetuning:  # fmt: skip
    """What the verb says of a classifier that it has trained and written to `out`.  score: the command to type next."""
    import torch

    from sparsify.evals import results
    from sparsify.evals.glue.finetune import finetune

    task = train.task
    torch.manual_seed(seed)  # of the fresh head
    classifier = fresh_classifier(p, task, recipe)
    state = out.with_name(f"{out.name}.training")
    goes_on_from(KeptRun(state))
    if state.exists():
        say(f"going on from {state}")
    learnt, scored = (tokens_of(p, examples, length) for examples in (train, dev))
    about = {"model": p.sha256, "plan": p.plan.sha256}
    with training(task, recipe.steps(learnt)) as progress:
        outcome = finetune(classifier, task, learnt, scored, recipe, seed, state, SAVE_EVERY, about, progress)
    write_classifier(classifier, out, p, task, length)
    state.unlink(missing_ok=True)
    return Finetuning(
        **described(p),
        task=task.name,
        out=str(out),
        seed=seed,
        recipe=asdict(recipe),
        n=len(train),
        available=train.available,
        parameters=sum(w.numel() for w in classifier.parameters()),
        metric=task.metrics[0],
        **vars(outcome),
        convention=convention(p, length),
        data_notes=noted(),
        conditions=results.conditions(p.device),
        next=score,
    )


def fresh_classifier(p: Pretrained, task: Task, recipe: Recipe) -> nn.Module:
    """The checkpoint's model with a new head for a task, ready to train; its convolutions as planned, if they are."""
    from sparsify import swap
    from sparsify.converters import m2_bert

    if not callable(make := getattr(p.model, "with_head", None)):
        raise ValueError(f"models of the family {p.family} cannot be fine-tuned here; pass an M2-BERT")
    model = make("classifier", num_labels=task.outputs, pool_all=True if recipe.pool_all else None)
    if not p.plan.is_dense:
        swap.install(m2_bert.sites(model), operators(p, p.plan))
    return model.requires_grad_(True)


def tokens_of(p: Pretrained, examples: Examples, length: int) -> Tokens:
    """Examples as the trainer takes them, in small integers.  length: as of `padded`."""
    import torch

    from sparsify.evals.glue.finetune import Tokens

    tokenizer: Any = p.tokenizer
    limit = length or p.context + 2
    batch = tokenizer.batch(examples.texts, examples.pairs, pad_to=length or None, limit=limit)
    lengths = torch.full((len(examples),), length) if length else batch.attention_mask.sum(1)
    small = batch.input_ids.int(), batch.attention_mask.to(torch.int8), batch.token_type_ids.to(torch.int8)
    labels = torch.from_numpy(examples.labels)
    return Tokens(small, lengths, labels if examples.task.classes else labels.float())


@contextmanager
def training(task: Task, steps: int) -> Iterator[Callable[[int, int, float, float], None]]:
    """A bar with the loss and the best score."""
    with counting(f"fine-tuning on {task.title}", steps, "step") as advance:

        def progress(done: int, total: int, loss: float, best: float) -> None:
            so_far = "" if math.isnan(best) else f", best dev {task.metrics[0]} {best:.4f}"
            advance(done, total, f"loss {loss:.3f}{so_far}")

        yield progress


def write_classifier(model: Any, out: Path, p: Pretrained, task: Task, pad_to: int) -> None:
    """The folder OUT with a classifier of a task, under the plan that it was trained under.

    pad_to: as of `padded`, which config.json and the tokenizer remember.
    """
    from sparsify.converters import load, m2_bert, write_folder
    from sparsify.evals.glue.labels import MEMORY
    from sparsify.evals.glue.labels import described as labelled

    tokenizer: Any = p.tokenizer
    entries = labelled(task) | {MEMORY: {"task": task.name, "pad_to": pad_to, "from": p.sha256}}
    if p.plan.is_dense:
        m2_bert.save(model, out, tokenizer, entries, pad_to)
        return
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as scratch:
        dense = m2_bert.save(model, Path(scratch) / "dense", tokenizer, entries, pad_to)
        write_folder(out, load(dense), p.plan, {"plan.json": p.plan.to_json()})
