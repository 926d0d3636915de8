"""Fine-tuning learns, keeps its best weights, and goes on after a break as if there had been none."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from sparsify.evals.glue.finetune import RECIPES, Order, Recipe, Tokens, finetune, make_optimizer, score
from sparsify.evals.glue.tasks import TASKS
from sparsify.fftconv import LongConv

RECIPE = Recipe(1e-2, 1e-4, decoupled=True, epochs=4, batch=8, patience=9)
LEARNS = replace(RECIPE, lr=3e-2, epochs=12)
LENGTH, WORDS = 12, 20


class Tiny(nn.Module):
    """A classifier with what the real ones have: embeddings, a convolution, normalisation, dropout."""

    def __init__(self, outputs=2, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(WORDS, 8)
        self.filter = nn.Parameter(torch.randn(8, LENGTH) / 4)
        self.conv = None  # a fixed one, as a plan puts in
        self.norm, self.dropout, self.head = nn.LayerNorm(8), nn.Dropout(0.2), nn.Linear(8, outputs)

    def forward(self, ids, attention_mask):
        assert ids.shape == attention_mask.shape and ids.dtype == torch.int64
        x = self.embedding(ids).mT
        if self.conv is None:
            spectrum = torch.fft.rfft(self.filter, 2 * LENGTH)
            y = torch.fft.irfft(torch.fft.rfft(x, 2 * LENGTH) * spectrum, 2 * LENGTH)[..., : ids.shape[1]]
        else:
            y = self.conv(x)
        return self.head(self.dropout(self.norm((x + y).mT)).mean(1))


def tokens(count, task=TASKS["sst2"], seed=1):
    """Examples of two lengths whose answer is what their words are on average: small ones or large ones."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (count, LENGTH), generator=generator)
    lengths = torch.tensor([7, LENGTH])[torch.randint(2, (count,), generator=generator)]
    mean = torch.stack([row[:length].float().mean() for row, length in zip(ids, lengths, strict=True)])
    labels = (mean >= (WORDS - 1) / 2).long() if task.classes else mean / 4
    return Tokens((ids.int(), torch.ones(count, LENGTH, dtype=torch.int8)), lengths, labels)


TRAIN, DEV = tokens(90), tokens(64, seed=2)


def tune(model, state=None, recipe=RECIPE, **options):
    return finetune(model, TASKS["sst2"], TRAIN, DEV, recipe, seed=3, state=state, **options)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Killed(Exception):
    pass


def killed_after(step):
    def progress(done, *_):
        if done == step:
            raise Killed

    return progress


STEPS = 4 * 12  # 90 examples of two lengths in batches of 8


def test_it_learns():
    outcome = tune(Tiny(), recipe=LEARNS)
    assert outcome.best.value > 0.8 > outcome.evaluations[0].value and outcome.steps == 3 * STEPS
    assert outcome.evaluations[-1].loss < outcome.evaluations[0].loss / 1.3


def test_it_learns_scores():
    task = TASKS["stsb"]
    data = (tokens(90, task), tokens(64, task, seed=2))
    assert finetune(Tiny(outputs=1), task, *data, LEARNS).best.value > 0.7


@pytest.mark.parametrize("stops", [(1,), (7,), (5, 6), (12,), (13, 30, 47), (48,)], ids=str)
def test_a_broken_run_ends_in_the_same_bits(stops, tmp_path):
    """Killed before there is a file, between saves, at one, at an epoch's end, several times, at the very end."""
    whole, state = Tiny(), tmp_path / "run.pt"
    expected = tune(whole)
    for stop in stops:
        with pytest.raises(Killed):
            tune(Tiny(), state, save_every=5, progress=killed_after(stop))
    saved = [step for step in range(1, stops[-1] + 1) if step % 5 == 0 or step % 12 == 0]
    again = Tiny(seed=8 if saved else 0)  # the file holds the weights, whatever the model had
    torch.rand(7)  # nor does it matter what was drawn before
    outcome = tune(again, state, save_every=5)
    assert outcome.resumed_at == max(saved, default=0)
    assert same(again, whole) and replace(outcome, resumed_at=0) == expected


def test_bits_tell_runs_apart(tmp_path):
    """What the test above would say of a run that forgot its generator, or its optimizer."""
    whole, state = Tiny(), tmp_path / "run.pt"
    tune(whole)
    for part in ("rng", "optimizer"):
        with pytest.raises(Killed):
            tune(Tiny(), state, save_every=5, progress=killed_after(7))
        content = torch.load(state)
        if part == "rng":
            content["rng"] = torch.Generator().manual_seed(99).get_state()
        else:
            for moments in content["optimizer"]["state"].values():
                moments["exp_avg"].zero_()
        torch.save(content, state)
        again = Tiny()
        tune(again, state, save_every=5)
        assert not same(again, whole)
        state.unlink()


def test_another_run_is_refused(tmp_path):
    state = tmp_path / "run.pt"
    with pytest.raises(Killed):
        tune(Tiny(), state, save_every=5, progress=killed_after(5))
    with pytest.raises(ValueError, match=r"of a run with another recipe.*remove the file"):
        tune(Tiny(), state, recipe=replace(RECIPE, lr=1e-3))
    with pytest.raises(ValueError, match="another dev set"):
        finetune(Tiny(), TASKS["sst2"], TRAIN, TRAIN, RECIPE, 3, state)
    with pytest.raises(ValueError, match="another model"):
        tune(Tiny(), state, about={"model": "abc"})
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"no state of a fine-tune .*; remove it"):
        tune(Tiny(), state)


def test_the_best_weights_are_kept_and_patience_ends_it():
    """A rate that falls apart after a while: what is left is what scored best, and the rest is not waited for."""
    recipe = replace(RECIPE, epochs=40, patience=2, lr=0.02)
    model = Tiny()
    outcome = tune(model, recipe=recipe)
    assert outcome.steps < outcome.planned_steps == 480
    assert outcome.best.value == max(e.value for e in outcome.evaluations) == score(model, TASKS["sst2"], DEV)
    assert [e.step for e in outcome.evaluations].index(outcome.best.step) == len(outcome.evaluations) - 3


def test_with_a_plan_filters_stay_and_the_rest_learns():
    model = Tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.conv = LongConv(model.filter.detach())
    outcome = tune(model, recipe=LEARNS)
    after = model.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == ["filter"]
    assert outcome.best.value > 0.8


def test_the_learning_rate_rises_and_falls():
    rates = [RECIPE.lr_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(RECIPE.lr / 6) and max(rates) == rates[5] == rates[6] == RECIPE.lr
    assert rates[99] == pytest.approx(RECIPE.lr / 94) and rates[6:] == sorted(rates[6:], reverse=True)


def test_decoupled_decay_does_not_depend_on_the_peak():
    """Without gradients a step at the peak rate shrinks weights by weight_decay itself, or by lr * weight_decay."""
    for recipe, shrunk in ((RECIPE, 1 - 1e-4), (replace(RECIPE, decoupled=False), 1 - 1e-2 * 1e-4)):
        model = nn.Linear(3, 3)
        before = model.weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        make_optimizer(model, recipe).step()
        assert torch.allclose(model.weight, before * shrunk, atol=1e-8, rtol=0)


def test_batches_hold_one_length_and_all_examples():
    order = Order(TRAIN, 8, seed=0)
    assert order.length == 12 and not torch.equal(order.at(0), order.at(12))
    for epoch in (0, 1):
        rows = [order.at(epoch * 12 + place) for place in range(12)]
        assert all(len(TRAIN.lengths[r].unique()) == 1 for r in rows)
        assert torch.cat(rows).sort().values.equal(torch.arange(90))
    assert torch.equal(Order(TRAIN, 8, seed=0).at(17), order.at(17))


def test_recipes_cover_every_task():
    assert set(RECIPES) == set(TASKS)


def test_refusals():
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        replace(RECIPE, epochs=0)
    with pytest.raises(ValueError, match="learning rate must be above 0"):
        replace(RECIPE, lr=0.0)
    with pytest.raises(ValueError, match=r"requires_grad_\(True\)"):
        tune(Tiny().requires_grad_(False))
    with pytest.raises(ValueError, match=r"loss became .*lower learning rate"):
        tune(Tiny(), recipe=replace(RECIPE, lr=1e30, epochs=9))
