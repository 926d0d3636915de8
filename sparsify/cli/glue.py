"""The verbs for models of text that read both ways: GLUE, masked tokens, retrieval, and a short fine-tune."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparsify.storage.reading import short_name

from .measure import TOKENS_A_BATCH, evaluate, masked_of
from .options import (
    AS_JSON,
    JOURNAL,
    SOURCE,
    KeptRun,
    counting,
    described,
    emit,
    note,
    noted,
    open_baseline,
    open_checkpoint,
    operators,
    options,
    program,
    quoted,
    say,
)

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that --help is quick
    from torch import Tensor, nn

    from sparsify.converters import Pretrained
    from sparsify.evals.glue.finetune import Recipe, Tokens
    from sparsify.evals.glue.tasks import Examples, Task

GLUE_LENGTH = 128  # tokens that GLUE's examples are padded to, as M2-BERT was fine-tuned
SAVE_EVERY = 200  # steps of a fine-tune

PAD_TO = click.option(
    "--pad-to", type=click.IntRange(0), help="Tokens that every text is padded to, which changes its numbers; 0 runs "
    "each at its own length.  [default: for GLUE as `finetune` did, else 128; the longest input for retrieval]",
)  # fmt: skip
BASELINE = click.option("--baseline", help="Dense checkpoint to compare with.  [default: MODEL itself, dense]")
TEXT = click.option("--data", type=click.Path(path_type=Path), required=True, help="Text file, gzipped or not; - is "
                    "standard input.")  # fmt: skip
EXAMPLES = options(
    click.option("--data", required=True, help="Folder or file with examples (JSONL, TSV, parquet), or a data set on "
                 "the hub as nyu-mll/glue."),
    PAD_TO,
)  # fmt: skip


# --- GLUE ----------------------------------------------------------------------------------------------------------


@evaluate.command()
@click.argument("model")
@click.option("--task", "tasks", required=True, help="Tasks with commas between them, or all; {task} in MODEL becomes "
              "each in turn.")  # fmt: skip
@click.option("--split", help="Score another split than the dev set, if its labels are known.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Examples of a split, evenly spaced.  [default: all]")
@click.option("--skip-missing", is_flag=True, help="Leave out the tasks that {task} names no model for.")
@click.option("--other-task", is_flag=True, help="Score a model that was fine-tuned for another task, too.")
@EXAMPLES
@BASELINE
@SOURCE
@AS_JSON
def glue(
    model: str, tasks: str, data: str, split: str | None, limit: int, skip_missing: bool, other_task: bool,
    pad_to: int | None, baseline: str | None, as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Score MODEL, fine-tuned on a task of GLUE, paired with the dense model on the same examples."""
    from sparsify.evals.glue.tasks import find_tasks

    found, missing = read_all(find_tasks(tasks), data, split, limit, may_miss=tasks == "all")
    pairs, lacking = models_of(found, model, baseline, where, skip_missing, other_task)
    missing += lacking
    figures, scored, opened = [], [], {}
    try:
        for examples in found:
            if (pair := pairs.get(examples.task.name)) is None:
                continue
            if pair not in opened:
                opened = {pair: pair_of(*pair, where)}
            p, base = opened[pair]
            own, row = score_split(p, base, examples, pad_to, other_task)
            figures += own
            scored.append({**described(p), **row})
    except BaseException:
        if scored:  # hours of work, maybe
            say("what was scored before this is printed all the same")
            emit(summed_up(figures, scored, missing, pairs, p), as_json, "glue")
        raise
    emit(summed_up(figures, scored, missing, pairs, p), as_json, "glue")


Pair = tuple[str, str | None]  # a model's name, and its baseline's if it has one


def summed_up(
    figures: list[Any], scored: list[dict[str, Any]], missing: list[str], pairs: Mapping[str, Pair], p: Pretrained
) -> dict[str, Any]:
    """What the verb says of all figures together."""
    from sparsify.evals import results
    from sparsify.evals.glue import scores as scoring

    done = {row["task"] for row in scored}
    apart = len({pair for task, pair in pairs.items() if task in done}) == len(done)  # a model for every task
    comparable = apart and not any(row["fine_tuned_for"] for row in scored)
    whole, theirs = (scoring.average(figures), scoring.m2_bert_average(figures)) if comparable else (None, None)
    return {
        "scored": scored,
        "figures": [figure.to_dict() for figure in figures],
        "average": whole and asdict(whole),
        "m2_bert_average": theirs and asdict(theirs),
        "missing": missing,
        "data_notes": noted(),
        "convention": f"{scored[0]['convention']}; p-values and 95 % intervals: McNemar's exact test for an accuracy, "
        f"else a bootstrap of the examples",
        "conditions": asdict(results.conditions(p.device)),
        "verdict": scoring.verdict(figures),
    }


def read_all(
    tasks: Sequence[Task], data: str, split: str | None, limit: int, may_miss: bool
) -> tuple[list[Examples], list[str]]:
    """The examples of every task's splits, and the files that were not there, a sentence each."""
    from sparsify.evals.glue.tasks import read_examples, refuse_one_file, splits_of

    if len(tasks) > 1:
        refuse_one_file(data, f"{len(tasks)} tasks were asked for")
    found, missing = [], []
    for task in tasks:
        for name in splits_of(task, split, data):
            try:
                examples = read_examples(data, task, name)
            except FileNotFoundError as error:
                if not may_miss:
                    raise
                missing.append(str(error))
                say(f"note: {error}")
                continue
            tell_left_out(examples)
            found.append(examples.spread(limit) if limit else examples)
    if not found:
        raise FileNotFoundError(f"{data} holds no examples of GLUE, such as sst2.dev.jsonl; pass the folder that does")
    return found, missing


def tell_left_out(examples: Examples) -> None:
    """Say which rows of a file are no examples, if any."""
    if (left_out := examples.left_out).count:
        note(left_out.sentence("row", short_name(examples.source)))


def models_of(
    found: Sequence[Examples], model: str, baseline: str | None, where: Mapping[str, Any], skip_missing: bool,
    other_task: bool,
) -> tuple[dict[str, Pair], list[str]]:  # fmt: skip
    """The model and the baseline of every task, all looked at before the work, and a sentence for each that lacks."""
    pairs: dict[str, Pair] = {}
    planned, missing = set(), []
    for task in dict.fromkeys(examples.task for examples in found):
        name = model.replace("{task}", task.name)
        dense = baseline and baseline.replace("{task}", task.name)
        try:
            under_plan = fits(name, where["revision"], task, other_task)
            if dense:
                fits(dense, None, task, other_task)
        except FileNotFoundError as error:
            missing.append(f"there is no model of {task.title}: {error}")
            continue
        pairs[task.name] = name, dense
        planned.add(under_plan or dense is not None)
    if missing and not (skip_missing and pairs):
        others = f", and {len(missing) - 1} more tasks have none" if len(missing) > 1 else ""
        remedy = "leave the task out, or say --skip-missing" if pairs else "pass one that is there"
        raise FileNotFoundError(f"{missing[0]}{others}; {remedy}")
    if len(planned) > 1:
        raise ValueError("some of these models are under a plan and some are not; score the two kinds apart")
    for sentence in missing:
        say(f"note: {sentence}")
    return pairs, missing


def fits(src: str, revision: str | None, task: Task, other_task: bool) -> bool:
    """Whether a checkpoint is under a plan; refuses one that is not there, or not for this task."""
    from sparsify.converters.hub.download import resolve
    from sparsify.converters.load import ours, saved_plan
    from sparsify.converters.tensors import read_config
    from sparsify.evals.glue.labels import check_task, label_order

    source = resolve(src, revision)
    config = read_config(source.folder)
    if not other_task:
        check_task(config, task, src)
        label_order(config, task, src)
    return (entry := ours(config)) is not None and not saved_plan(entry, source.folder).is_dense


def pair_of(model: str, baseline: str | None, where: Mapping[str, Any]) -> tuple[Pretrained, Pretrained]:
    """A checkpoint, and the dense one to compare it with."""
    p = open_checkpoint(model, **where)
    return p, open_baseline(baseline, p, where) if baseline else p


def score_split(
    p: Pretrained, base: Pretrained, examples: Examples, pad_to: int | None, other_task: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """The figures of one split, and what there is to say of it besides."""
    from sparsify.evals.glue import scores as scoring

    task, made_for = examples.task, common_task(p, base)
    length = padded(p, pad_to, trained_with(p))
    variants = {
        name: in_order_of(task, q, on_texts(q, run, length), other_task) for name, (q, run) in compared(p, base).items()
    }
    title = f"{task.title} {examples.split}"
    with counting(title, len(examples), "example") as progress:
        said = scoring.answers(variants, examples, batch_of(p, length), progress)
    cut = too_long(p, examples.texts, examples.pairs, length)
    other = made_for.title if made_for is not None and made_for != task else None
    row = {
        "task": task.name,
        "split": examples.split,
        "source_of_data": examples.source,
        "n": len(examples),
        "available": examples.available,
        "left_out": examples.left_out.count,
        "cut": cut,
        "agreement": scoring.agreement(said),
        "fine_tuned_for": other,
        "convention": convention(p, length) + as_in_training(p, length)
        + (f"; fine-tuned for {other}, not for this task" if other else ""),
    }  # fmt: skip
    return scoring.figures(examples, said), row


def common_task(p: Pretrained, base: Pretrained) -> Task | None:
    """The task that two classifiers were fine-tuned for, None where config.json does not tell; refuses two tasks."""
    from sparsify.evals.glue.labels import fine_tuned_for

    for q in (p, base):
        check_head(q, "classifier", way_to_a_classifier(q))
    own, other = fine_tuned_for(p.config), fine_tuned_for(base.config)
    if own is not None and other is not None and own != other:
        raise ValueError(
            f"{p.source.name} was fine-tuned for {own.title} and {base.source.name} for {other.title}; "
            f"compare models of one task"
        )
    return own


def in_order_of(task: Task, p: Pretrained, run: Callable[..., Tensor], other_task: bool) -> Callable[..., Tensor]:
    """`run` with its columns in the order of the task's classes, as config.json names them."""
    from sparsify.evals.glue.labels import label_order

    try:
        order = label_order(p.config, task, p.source.name)
    except ValueError:
        if not other_task:
            raise
        order = None  # other labels, which stand for the task's as they come
    if order is None:
        return run

    def ordered(texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        logits = run(texts, pairs)
        if logits.shape[-1] != len(order):
            raise ValueError(
                f"config.json of {p.source.name} names {len(order)} labels and the model has {logits.shape[-1]}; "
                f"mend id2label"
            )
        return logits[:, order]

    return ordered


def way_to_a_classifier(p: Pretrained) -> str:
    """What to do about a model that is no classifier of texts, as the end of a sentence."""
    if callable(getattr(p.model, "with_head", None)):
        return "`sparsify finetune` makes a classifier of it"
    return f"models of the family {p.family} cannot be fine-tuned here, so pass a classifier such as M2-BERT's"


# --- masked tokens and retrieval -----------------------------------------------------------------------------------


@evaluate.command()
@click.argument("model")
@TEXT
@click.option("--context", type=click.IntRange(1), help="Tokens of text in a window.  [default: the model's context]")
@click.option("--limit", type=click.IntRange(0), default=500, show_default=True, help="Windows, evenly spaced; 0: all.")
@click.option("--share", type=float, default=0.15, show_default=True, help="Share of the tokens that is masked.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the masks.")
@BASELINE
@SOURCE
@AS_JSON
def mlm(
    model: str, data: Path, context: int | None, limit: int, share: float, seed: int, baseline: str | None,
    as_json: bool, **where: Any,
) -> None:  # fmt: skip
    """Pseudo-perplexity of MODEL on masked tokens of a text, paired with the dense model under the same masks."""
    from sparsify.evals import mlm as filling
    from sparsify.evals import results
    from sparsify.evals.texts import saying

    p, base = pair_of(model, baseline, where)
    check_head(p, "mlm", "pass the masked language model that it was made from")
    masked = masked_of(p, data, context, limit, share=share, seed=seed)
    variants = {name: run for name, (_, run) in compared(p, base, saying).items()}
    with counting("masked tokens", len(masked), "window") as progress:
        found = filling.compare(variants, masked, batch_of(p, masked.context), progress)
    result = {
        **described(p),
        "variants": [row.to_dict() for row in found.values()],
        "convention": masked.convention(),
        "data_notes": noted(),
        "conditions": asdict(results.conditions(p.device)),
    }
    emit(result, as_json, "filled_in")


def embed_with(model: Any) -> Callable[..., Tensor]:
    return model.embed


@evaluate.command()
@click.argument("model")
@TEXT
@click.option("--limit", type=click.IntRange(2), default=200, show_default=True, help="Paragraphs, evenly spaced.")
@PAD_TO
@BASELINE
@SOURCE
@AS_JSON
def retrieval(
    model: str, data: Path, limit: int, pad_to: int | None, baseline: str | None, as_json: bool, **where: Any
) -> None:
    """Whether MODEL's sentence embeddings find the other halves of a text's paragraphs as the dense model's do."""
    from sparsify.evals import results
    from sparsify.evals import retrieval as searching
    from sparsify.evals.data import read_documents

    p, base = pair_of(model, baseline, where)
    if not callable(getattr(p.model, "embed", None)):
        raise ValueError(f"models of the family {p.family} have no sentence embeddings; pass an M2-BERT")
    pairs = searching.halves(read_documents(data, note), limit)
    length = padded(p, pad_to, p.context + 2)
    embedding = compared(p, base, embed_with)
    variants = {name: on_texts(q, run, length) for name, (q, run) in embedding.items()}
    with counting("embeddings", 2 * len(pairs), "text") as progress:
        found = searching.compare(variants, pairs, batch_of(p, length), progress)
    cut = too_long(p, (*pairs.queries, *pairs.passages), None, length)
    result = {
        **described(p),
        "variants": [row.to_dict() for row in found.values()],
        "cut": cut,
        "convention": f"{pairs.convention()}; {convention(p, length)}, as {cut:,} of {2 * len(pairs):,} were",
        "data_notes": noted(),
        "conditions": asdict(results.conditions(p.device)),
    }
    emit(result, as_json, "retrieved")


# --- fine-tuning ---------------------------------------------------------------------------------------------------


CHANGES = ("lr", "weight_decay", "epochs", "batch", "patience")  # of a recipe, fields and options alike


@click.command()
@click.argument("model")
@click.option("--task", required=True, help="A task of GLUE.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the classifier.")
@click.option("--seed", type=click.IntRange(0, 2**31), default=19, show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Examples to train on, evenly spaced.  [default: all]")
@click.option("--lr", type=float, help="Learning rate at its peak.  [default: of M2-BERT's recipe for the task]")
@click.option("--weight-decay", type=float, help="[default: the recipe's]")
@click.option("--epochs", type=int, help="[default: the recipe's]")
@click.option("--batch", type=int, help="Examples a step.  [default: the recipe's]")
@click.option("--patience", type=int, help="Evaluations without a better one before it stops.  [default: 3]")
@EXAMPLES
@SOURCE
@AS_JSON
def finetune(
    model: str, task: str, out: Path, seed: int, limit: int | None, data: str, pad_to: int | None, as_json: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Fine-tune MODEL on a task of GLUE and write the classifier to OUT.

    If MODEL was sparsified its convolutions stay as planned, and all else learns.  Interrupted, the same command goes
    on where it was.
    """
    from sparsify.evals.glue.finetune import RECIPES
    from sparsify.evals.glue.tasks import find_tasks, read_examples, refuse_one_file

    changes = {name: value for name in CHANGES if (value := where.pop(name)) is not None}
    asked, *others = find_tasks(task)
    if others:
        raise ValueError(f"a model is fine-tuned on one task, got {task}; run this once for each")
    if out.exists():
        raise ValueError(f"{out} is there already; name a new folder")
    recipe = replace(RECIPES[asked.name], **changes)
    refuse_one_file(data, "a fine-tune takes a training set and a dev set")
    train, dev = read_examples(data, asked, "train"), read_examples(data, asked, asked.dev[0])
    for examples in (train, dev):
        tell_left_out(examples)
    p = open_checkpoint(model, **where)
    length = padded(p, pad_to, trained_with(p))
    result = trained(p, train.spread(limit) if limit else train, dev, recipe, seed, length, out)
    score = f"{program()} eval glue {quoted(out)} --task {asked.name} --data {quoted(data)}"
    emit(result | {"next": score}, as_json, "fine_tuned")


def trained(
    p: Pretrained, train: Examples, dev: Examples, recipe: Recipe, seed: int, length: int, out: Path
) -> dict[str, Any]:
    """What the verb says of a classifier that it has trained and written to `out`."""
    import torch

    from sparsify.evals import results
    from sparsify.evals.glue.finetune import finetune

    task = train.task
    torch.manual_seed(seed)  # of the fresh head
    classifier = fresh_classifier(p, task, recipe)
    state = out.with_name(f"{out.name}.training")
    click.get_current_context().meta[JOURNAL] = KeptRun(state)
    if state.exists():
        say(f"going on from {state}")
    learnt, scored = (tokens_of(p, examples, length) for examples in (train, dev))
    about = {"model": p.sha256, "plan": p.plan.sha256}
    with training(task, recipe.steps(learnt)) as progress:
        outcome = finetune(classifier, task, learnt, scored, recipe, seed, state, SAVE_EVERY, about, progress)
    write_classifier(classifier, out, p, task, length)
    state.unlink(missing_ok=True)
    return {
        **described(p),
        "task": task.name,
        "out": str(out),
        "seed": seed,
        "recipe": asdict(recipe),
        "n": len(train),
        "available": train.available,
        "parameters": sum(w.numel() for w in classifier.parameters()),
        "metric": task.metrics[0],
        **asdict(outcome),
        "convention": convention(p, length),
        "data_notes": noted(),
        "conditions": asdict(results.conditions(p.device)),
    }


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
    said = labelled(task) | {MEMORY: {"task": task.name, "pad_to": pad_to, "from": p.sha256}}
    if p.plan.is_dense:
        m2_bert.save(model, out, tokenizer, said, pad_to)
        return
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as room:
        dense = m2_bert.save(model, Path(room) / "dense", tokenizer, said, pad_to)
        write_folder(out, load(dense), p.plan, {"plan.json": p.plan.to_json()})


# --- models of text ------------------------------------------------------------------------------------------------


def check_head(p: Pretrained, head: str, otherwise: str) -> None:
    if p.head != head:
        raise ValueError(f"{p.source.name} has the head {p.head!r}, and this takes {head!r}; {otherwise}")


def reads_text(p: Pretrained) -> bool:
    return hasattr(p.tokenizer, "batch")


def how_to_score(p: Pretrained, out: Path) -> str:
    """The command that measures how well a model of text in `out` does; its speed, for other models."""
    from sparsify.evals.glue.tasks import TASKS

    task = next((name for name in TASKS if name == remembered(p, "task")), "TASK")
    verbs = {
        "classifier": f"eval glue {quoted(out)} --task {task} --data DIR",
        "mlm": f"eval mlm {quoted(out)} --data FILE",
        "encoder": f"eval retrieval {quoted(out)} --data FILE",
    }
    return f"{program()} {verbs[p.head] if reads_text(p) else f'bench {quoted(out)}'}"


def remembered(p: Pretrained, name: str) -> Any:
    """What `finetune` wrote of itself into config.json under this name; None in models from elsewhere."""
    from sparsify.evals.glue.labels import MEMORY

    made = p.config.get(MEMORY)
    return made.get(name) if isinstance(made, dict) else None


def trained_with(p: Pretrained) -> int:
    """Tokens that `finetune` padded every text to, 0 for its own length; M2-BERT's for models from elsewhere."""
    from sparsify.evals.glue.labels import MEMORY

    length = remembered(p, "pad_to")
    if length is None:
        return GLUE_LENGTH
    if type(length) is not int or length < 0:
        raise ValueError(
            f"config.json has {length!r:.60} for {MEMORY}.pad_to, expected a number of tokens; take it out"
        )
    return length


def as_in_training(p: Pretrained, length: int) -> str:
    """Whether texts are as long as `finetune` had them, as the end of a sentence; empty for models from elsewhere."""
    if remembered(p, "pad_to") is None:
        return ""
    before = trained_with(p)
    if length == before:
        return ", as in its fine-tune"
    return ", unlike in its fine-tune, " + (f"which padded to {before}" if before else "which padded none")


def padded(p: Pretrained, pad_to: int | None, default: int) -> int:
    """Tokens that every text is padded to, 0 for its own length; the default is cut to what the model takes."""
    if not reads_text(p):
        raise ValueError(f"models of the family {p.family} read no text; pass an M2-BERT")
    longest = p.context + 2
    if pad_to is not None and pad_to > longest:
        raise ValueError(f"--pad-to {pad_to} is longer than the {longest} tokens this model takes; choose at most that")
    return min(default, longest) if pad_to is None else pad_to


def convention(p: Pretrained, length: int) -> str:
    """How texts were made equally long, in words that travel with the numbers."""
    if length:
        return f"padding is data to this model: every text padded to {length} tokens, longer ones cut"
    return f"every text at its own length, without padding, cut to {p.context + 2} tokens"


def too_long(p: Pretrained, texts: Sequence[str], pairs: Sequence[str] | None, length: int) -> int:
    """How many texts are cut."""
    tokenizer: Any = p.tokenizer
    counts = [len(row) + 2 for row in tokenizer.pieces(texts)]
    if pairs is not None:
        counts = [n + len(row) + 1 for n, row in zip(counts, tokenizer.pieces(pairs), strict=True)]
    return sum(n > (length or p.context + 2) for n in counts)


def compared(
    p: Pretrained, base: Pretrained, call: Callable[[nn.Module], Callable[..., Tensor]] | None = None
) -> dict[str, tuple[Pretrained, Callable[..., Tensor]]]:
    """The dense model, and the one under its plan if it has one or weights of its own: name -> checkpoint, function.

    call: model -> what of it to run; None runs it itself.
    """
    from sparsify import swap
    from sparsify.plan import Plan

    plans = {"dense": (base, Plan.dense(base.filters))}
    if base is not p or not p.plan.is_dense:
        plans["sparse"] = (p, p.plan)
    return {name: (q, swap.variant(q.model, q.sites, operators(q, plan), call and call(q.model)))
            for name, (q, plan) in plans.items()}  # fmt: skip


def on_texts(p: Pretrained, run: Callable[..., Tensor], length: int) -> Callable[..., Tensor]:
    """`run` as a function of texts, and of second texts if there are any -> (B, columns).  length: as of `padded`."""
    import torch

    tokenizer: Any = p.tokenizer

    def of(texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tensor:
        batch = tokenizer.batch(texts, pairs, pad_to=length or None, limit=length or p.context + 2)
        inputs = batch.input_ids, batch.attention_mask, batch.token_type_ids
        if length:
            return run(*inputs)
        lengths, rows, parts = batch.attention_mask.sum(1), [], []
        for own in lengths.unique().tolist():  # texts of one length together: none of them is padded
            rows.append((lengths == own).nonzero()[:, 0])
            parts.append(run(*(x[rows[-1], :own] for x in inputs)))
        found = torch.cat(parts)
        return found[torch.cat(rows).argsort().to(found.device)]

    return of


def batch_of(p: Pretrained, length: int) -> int:
    """Texts at a time; many where each has a length of its own, so that some share one."""
    return max(1, TOKENS_A_BATCH // length) if length else max(1, (1 << 16) // (p.context + 2))
