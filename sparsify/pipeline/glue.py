"""GLUE: a classifier's scores, paired with the dense model's on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsify.report.schema import Figure, Glue, ScoredSplit
from sparsify.storage.reading import short_name

from .checkpoints import at_least, compared, described, pair_of
from .progress import Progress, counting, leave_unfinished, note, noted, say, session
from .texts import as_in_training, batch_of, check_head, convention, on_texts, padded, too_long, trained_with

if TYPE_CHECKING:  # at run time each verb imports what it needs, so that `sparsify --help` is quick
    from torch import Tensor

    from sparsify.converters import Pretrained
    from sparsify.evals.glue.tasks import Examples, Task

Pair = tuple[str, str | None]  # a model's name, and its baseline's if it has one


def evaluate_glue(
    model: str, data: str, task: str = "all", *, split: str | None = None, limit: int = 0, skip_missing: bool = False,
    other_task: bool = False, pad_to: int | None = None, baseline: str | None = None, revision: str | None = None,
    options: Mapping[str, Any] | None = None, device: str | None = None, progress: Progress | None = None,
) -> Glue:  # fmt: skip
    """Score a model that was fine-tuned on a task of GLUE, paired with the dense model on the same examples.

    Args:
        model: A folder or a hub id; {task} in it becomes each task in turn.
        data: Folder or file with examples (JSONL, TSV, parquet), or a data set on the hub as nyu-mll/glue.
        task: Tasks with commas between them, or "all".
        split: Score another split than the dev set, if its labels are known.
        limit: Examples of a split, evenly spaced; 0 takes all.
        skip_missing: Leave out the tasks that {task} names no model for.
        other_task: Score a model that was fine-tuned for another task, too.
        pad_to: Tokens that every text is padded to, which changes its numbers; 0 runs each at its own length, None pads
            as `finetune` did, else to 128.
        baseline: Dense checkpoint to compare with; None takes the model itself, dense.
        revision: Branch, tag or commit on the hub.
        options: What the family lets its users choose, such as {"shift": 0.05} for a HyenaDNA.
        device: Where to run, as "cpu" or "cuda:1"; None takes a CUDA device if there is one.
        progress: Called with every `progress.Event` while this works.

    Returns:
        A mapping with what `--json` prints, among it `figures`, one for each metric of each split, with the dense
        score, the sparse score and the p-value of their paired difference; `average` over all tasks, None where one is
        missing; the `verdict` in sentences.

    Raises:
        ValueError: An argument or the checkpoint does not fit; the sentence says what came, what fits and what to do.
        LookupError: The checkpoint is of no family that is known here.
        OSError: A file or a repository is missing, or cannot be read or written.
        RuntimeError: What was asked for cannot be done here.
            What was scored before that is the `unfinished` result of a session around this.
    """
    from sparsify.evals.glue.tasks import find_tasks

    at_least(0, limit=limit, pad_to=pad_to)
    where: dict[str, Any] = {"revision": revision, "options": options, "device": device}
    with session(progress):
        found, missing = read_all(find_tasks(task), str(data), split, limit, may_miss=task == "all")
        pairs, lacking = models_of(found, model, baseline, where, skip_missing, other_task)
        return scored_by(found, pairs, missing + lacking, where, pad_to, other_task)


def scored_by(
    found: Sequence[Examples], pairs: Mapping[str, Pair], missing: list[str], where: Mapping[str, Any],
    pad_to: int | None, other_task: bool,
) -> Glue:  # fmt: skip
    """What the verb says of every split that there is a model for; whatever fails, what was scored is left."""
    figures: list[Figure] = []
    scored: list[ScoredSplit] = []
    opened: dict[Pair, tuple[Pretrained, Pretrained]] = {}
    try:
        for examples in found:
            if (pair := pairs.get(examples.task.name)) is None:
                continue
            if pair not in opened:
                opened = {pair: pair_of(*pair, where)}
            p, base = opened[pair]
            own, row = score_split(p, base, examples, pad_to, other_task)
            figures += own
            scored.append(row)
    except BaseException:
        if scored:  # hours of work, maybe
            leave_unfinished(summed_up(figures, scored, missing, pairs, p))
        raise
    return summed_up(figures, scored, missing, pairs, p)


def summed_up(
    figures: list[Figure], scored: list[ScoredSplit], missing: list[str], pairs: Mapping[str, Pair], p: Pretrained
) -> Glue:
    """What the verb says of all figures together."""
    from sparsify.evals import results
    from sparsify.evals.glue import scores as scoring

    done = {row.task for row in scored}
    apart = len({pair for task, pair in pairs.items() if task in done}) == len(done)  # a model for every task
    comparable = apart and not any(row.fine_tuned_for for row in scored)
    whole, theirs = (scoring.average(figures), scoring.m2_bert_average(figures)) if comparable else (None, None)
    return Glue(
        scored=tuple(scored),
        figures=tuple(figures),
        average=whole,
        m2_bert_average=theirs,
        missing=missing,
        data_notes=noted(),
        convention=f"{scored[0].convention}; p-values and 95 % intervals: McNemar's exact test for an accuracy, "
        f"else a bootstrap of the examples",
        conditions=results.conditions(p.device),
        verdict=scoring.verdict(figures),
    )


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
        dense = None if baseline is None else baseline.replace("{task}", task.name)
        try:
            under_plan = fits(name, where["revision"], task, other_task)
            if dense is not None:
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


def score_split(
    p: Pretrained, base: Pretrained, examples: Examples, pad_to: int | None, other_task: bool = False
) -> tuple[list[Figure], ScoredSplit]:
    """The figures of one split, and what there is to say of it besides."""
    from sparsify.evals.glue import scores as scoring

    task, made_for = examples.task, common_task(p, base)
    length = padded(p, pad_to, trained_with(p))
    variants = {
        name: in_order_of(task, q, on_texts(q, run, length), other_task) for name, (q, run) in compared(p, base).items()
    }
    title = f"{task.title} {examples.split}"
    with counting(title, len(examples), "example") as progress:
        answers = scoring.answers(variants, examples, batch_of(p, length), progress)
    cut = too_long(p, examples.texts, examples.pairs, length)
    other = made_for.title if made_for is not None and made_for != task else None
    row = ScoredSplit(
        **described(p),
        task=task.name,
        split=examples.split,
        source_of_data=examples.source,
        n=len(examples),
        available=examples.available,
        left_out=examples.left_out.count,
        cut=cut,
        agreement=scoring.agreement(answers),
        fine_tuned_for=other,
        convention=convention(p, length) + as_in_training(p, length)
        + (f"; fine-tuned for {other}, not for this task" if other else ""),
    )  # fmt: skip
    return scoring.figures(examples, answers), row


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
