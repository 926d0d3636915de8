"""A short fine-tune on a GLUE task, which can be interrupted anywhere and goes on to the very same weights."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.report.schema import DevScore
from sparsify.storage.files import write_whole
from sparsify.storage.tensors import fingerprint

from .metrics import METRICS
from .scores import decide
from .tasks import Task

Weights = dict[str, Tensor]
STATE = 1  # schema of the file that a run goes on from


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune.  The learning rate rises over the first `warmup` of all steps, then falls in a line to 0."""

    lr: float
    weight_decay: float
    decoupled: bool  # decay by weight_decay * lr / peak lr a step, not by weight_decay * lr
    epochs: int
    batch: int
    pool_all: bool = False  # for who builds the model: pool by the mean over tokens, not by the first one
    warmup: float = 0.06
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    evaluations: int = 1  # on the dev set, an epoch
    patience: int = 3  # stop after so many evaluations without a better one

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"the learning rate must be above 0, got {self.lr}")
        for name in ("epochs", "batch", "evaluations", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def steps(self, train: Tokens) -> int:
        """Steps in all, if it does not stop before."""
        return self.epochs * len(train.batches(self.batch))

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of step 0 .. steps - 1."""
        rise = max(1, math.ceil(self.warmup * steps))
        return self.lr * min((step + 1) / rise, (steps - step) / max(1, steps - rise))


RECIPES = {  # as M2-BERT 80M was fine-tuned; its authors began MRPC, STS-B and RTE from the MNLI checkpoint
    "mnli": Recipe(5e-5, 5e-6, decoupled=True, epochs=3, batch=48),
    "qnli": Recipe(5e-5, 1e-6, decoupled=True, epochs=10, batch=16, pool_all=True),
    "qqp": Recipe(3e-5, 0.01, decoupled=False, epochs=10, batch=16),
    "sst2": Recipe(3e-5, 3e-6, decoupled=True, epochs=3, batch=16),
    "cola": Recipe(5e-5, 5e-6, decoupled=True, epochs=10, batch=32),
    "stsb": Recipe(7e-5, 0.01, decoupled=False, epochs=10, batch=32),
    "mrpc": Recipe(5e-5, 0.01, decoupled=False, epochs=10, batch=32),
    "rte": Recipe(5e-5, 0.01, decoupled=False, epochs=6, batch=16),
    "wnli": Recipe(5e-5, 0.01, decoupled=False, epochs=6, batch=16),  # they left it out: RTE's, the most alike
}


@dataclass(frozen=True, eq=False)
class Tokens:
    """Examples as a model takes them.  Padding is data to a convolution, so each has a length that it is given at.

    inputs: what the model is called with, each (N, L) of a small integer type.  lengths: (N,) int64, how many of the L
    columns an example has: all the same where texts are padded to one length.  labels: (N,) int64 or float32.
    """

    inputs: tuple[Tensor, ...]
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """Digest of all of it."""
        inputs = {f"inputs.{i}": x for i, x in enumerate(self.inputs)}
        return fingerprint({**inputs, "lengths": self.lengths, "labels": self.labels})

    def batch(self, rows: Tensor, device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs (B, length) int64 and labels (B,) of some examples of one length, on the device."""
        length = int(self.lengths[rows[0]])
        return tuple(x[rows, :length].long().to(device) for x in self.inputs), self.labels[rows].to(device)

    def batches(self, size: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """All examples in batches of one length each, (B,) int64 indices; in another order if drawn by a generator."""
        order = torch.arange(len(self)) if generator is None else torch.randperm(len(self), generator=generator)
        groups = [order[self.lengths[order] == length] for length in self.lengths.unique()]
        found = [batch for group in groups for batch in group.split(size)]
        turn = range(len(found)) if generator is None else torch.randperm(len(found), generator=generator).tolist()
        return [found[i] for i in turn]


@dataclass
class Run:
    """Where a run stands.  The learning rate and the order of the data follow from the step and the seed."""

    step: int = 0
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    evaluations: list[DevScore] = field(default_factory=list)
    best: Weights = field(default_factory=dict)

    @property
    def best_evaluation(self) -> DevScore:
        return max(self.evaluations, key=lambda e: (e.value, -e.step))

    def since_best(self) -> int:
        """Evaluations since the best one."""
        return len(self.evaluations) - 1 - self.evaluations.index(self.best_evaluation) if self.evaluations else 0


@dataclass(frozen=True)
class Outcome:
    """What came of a fine-tune; the model holds the best weights."""

    steps: int  # taken
    planned_steps: int
    evaluations: tuple[DevScore, ...]
    best: DevScore
    resumed_at: int  # 0 for a run from the start


Progress = Callable[[int, int, float, float], None]  # steps done, steps in all, training loss, best dev value or NaN


def finetune(
    model: nn.Module,
    task: Task,
    train: Tokens,
    dev: Tokens,
    recipe: Recipe,
    seed: int = 0,
    state: Path | None = None,
    save_every: int = 200,
    about: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train `model` in place to answer a task, and leave it with the weights that did best on the dev set.

    model(*inputs) -> logits (B, classes), or (B, 1) for a score.  All that a gradient reaches is trained: convolutions
    with fixed filters, as a plan has them, pass gradients on and keep their filters.
    state: file that the run is written to, whole, every `save_every` steps and after every evaluation; if it is there,
    the run goes on from it and ends in the same bits as one without a break, on a CPU with as many threads.  It stays
    until the caller removes it.  about: what besides makes a run the same, e.g. the model's fingerprint.
    """
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1 step, got {save_every}")
    device = next(model.parameters()).device
    setup = identity(task, train, dev, recipe, seed, about or {})
    optimizer = make_optimizer(model, recipe)
    run, order, steps = Run(), Order(train, recipe.batch, seed), recipe.steps(train)
    torch.manual_seed(seed)  # dropout
    if state is not None and state.exists():
        run = read_state(state, setup, model, optimizer)
    resumed_at, due = run.step, evaluated_at(recipe, steps)
    while run.step < steps and run.since_best() < recipe.patience:
        batch = train.batch(order.at(run.step), device)
        run.losses.append(train_step(model, optimizer, task, batch, recipe.lr_at(run.step, steps)))
        run.step += 1
        if run.step in due:
            evaluate(model, task, dev, run, recipe.batch)
        if state is not None and (run.step % save_every == 0 or run.step in due):
            write_whole(state, state_bytes(setup, run, model, optimizer))
        if progress is not None:
            loss = run.losses[-1] if run.losses else run.evaluations[-1].loss
            progress(run.step, steps, loss, run.best_evaluation.value if run.evaluations else math.nan)
    model.load_state_dict(run.best)
    return Outcome(run.step, steps, tuple(run.evaluations), run.best_evaluation, resumed_at)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over all that may be trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("no parameter of the model may be trained; call requires_grad_(True) on it")
    decay = recipe.weight_decay / recipe.lr if recipe.decoupled else recipe.weight_decay  # AdamW multiplies it with lr
    return torch.optim.AdamW(parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=decay)


class Order:
    """Which examples each step sees; every epoch has an order of its own, drawn from the seed and its number alone."""

    def __init__(self, train: Tokens, batch: int, seed: int) -> None:
        self.train, self.batch, self.seed = train, batch, seed
        self.length = len(train.batches(batch))  # steps of an epoch
        self.epoch, self.drawn = -1, list[Tensor]()

    def at(self, step: int) -> Tensor:
        """Examples of a step: (B,) int64."""
        epoch, place = divmod(step, self.length)
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
            self.epoch, self.drawn = epoch, self.train.batches(self.batch, generator)
        return self.drawn[place]


def evaluated_at(recipe: Recipe, steps: int) -> frozenset[int]:
    """After how many steps the dev set is scored; the last one always."""
    parts = recipe.epochs * recipe.evaluations
    return frozenset(math.ceil((i + 1) * steps / parts) for i in range(parts))


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    batch: tuple[tuple[Tensor, ...], Tensor],
    lr: float,
) -> float:
    """The loss of one batch, after which the weights have moved."""
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = lr
    inputs, labels = batch
    logits = model(*inputs).float()
    loss = F.cross_entropy(logits, labels) if task.classes else F.mse_loss(logits[:, 0], labels)
    if not loss.isfinite():
        raise ValueError(f"the training loss became {loss.item()}; choose a lower learning rate")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def evaluate(model: nn.Module, task: Task, dev: Tokens, run: Run, batch: int) -> None:
    """Score the dev set, and keep these weights if they are the best so far."""
    value = score(model, task, dev, batch)
    run.evaluations.append(DevScore(run.step, value, sum(run.losses) / len(run.losses)))
    run.losses = []
    if run.best_evaluation is run.evaluations[-1]:
        run.best = {name: tensor.clone() for name, tensor in model.state_dict().items()}


def score(model: nn.Module, task: Task, dev: Tokens, batch: int = 64) -> float:
    """The task's first metric on these examples."""
    model.eval()
    device = next(model.parameters()).device
    answers = torch.empty(len(dev), dtype=torch.float64)
    with torch.no_grad():
        for rows in dev.batches(batch):
            inputs, _ = dev.batch(rows, device)
            answers[rows] = torch.from_numpy(decide(model(*inputs), task, len(rows), "the model")).double()
    return METRICS[task.metrics[0]](answers.numpy(), dev.labels.numpy())


# --- what a run goes on from ---------------------------------------------------------------------------------------


def identity(
    task: Task, train: Tokens, dev: Tokens, recipe: Recipe, seed: int, about: Mapping[str, Any]
) -> dict[str, str]:
    """What makes two runs the same, a text each."""
    data = {"training set": train.sha256, "dev set": dev.sha256}
    plain = {"task": task.name, "recipe": asdict(recipe), "seed": seed, "torch": torch.__version__, **about}
    return {name: json.dumps(value, sort_keys=True) for name, value in {**data, **plain}.items()}


def state_bytes(setup: Mapping[str, str], run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    """All that the next step depends on, as a file."""
    content = {
        "schema": STATE,
        "setup": dict(setup),
        "step": run.step,
        "losses": run.losses,
        "evaluations": [e.to_dict() for e in run.evaluations],
        "best": run.best,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def read_state(path: Path, setup: Mapping[str, str], model: nn.Module, optimizer: torch.optim.Optimizer) -> Run:
    """The run in a file, put into model, optimizer and torch's generators; ValueError if it is another run's."""
    device = next(model.parameters()).device
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["schema"] != STATE:
            raise ValueError(f"schema {content['schema']}")
    except Exception as error:  # torch says the same thing in many ways
        raise ValueError(
            f"{path} is no state of a fine-tune ({type(error).__name__}); remove it to start anew"
        ) from error
    if other := [name for name, value in setup.items() if content["setup"].get(name) != value]:
        raise ValueError(
            f"{path} is of a run with another {other[0]}; go on with the one it had, or remove the file to start anew"
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    if content["cuda_rng"] and device.type == "cuda":
        torch.cuda.set_rng_state_all(content["cuda_rng"])
    return Run(content["step"], content["losses"], [DevScore(**e) for e in content["evaluations"]], content["best"])
