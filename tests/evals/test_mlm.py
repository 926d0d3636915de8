"""Pseudo-perplexity: which tokens are masked, what is computed of them, and that variants see the same."""

import math

import pytest
import torch
import torch.nn.functional as F

from sparsify.evals import texts
from sparsify.evals.mlm import compare, mask

V, MASK, SPECIAL = 11, 10, (8, 9, 10)


def windows(count=40, length=22, seed=0):
    """Windows that begin with 8 and end with 9, 0 .. 7 between them: (count, length) int64."""
    ids = torch.randint(8, (count, length), generator=torch.Generator().manual_seed(seed))
    ids[:, 0], ids[:, -1] = 8, 9
    return ids


def table(seed):
    """A model whose logits depend on the tokens next to a masked one."""
    weights = torch.randn(2, V, V, generator=torch.Generator().manual_seed(seed))

    def fill_in(ids, hidden):
        assert torch.equal(hidden, ids == MASK)
        logits = weights[0][ids.roll(1, 1)] + weights[1][ids.roll(-1, 1)]
        return logits[hidden]

    return fill_in


def test_masks_hide_ordinary_tokens_evenly():
    ids = windows()
    masked = mask(ids, SPECIAL, MASK, 0.15, seed=1)
    assert masked.per_window.tolist() == [3] * 40 and not masked.hidden[:, [0, -1]].any()
    assert torch.equal(masked.ids, torch.where(masked.hidden, MASK, ids)) and (masked.ids != ids).sum() == 120
    assert torch.equal(masked.targets, ids[masked.hidden])
    assert torch.equal(mask(ids, SPECIAL, MASK, 0.15, seed=1).hidden, masked.hidden)
    assert not torch.equal(mask(ids, SPECIAL, MASK, 0.15, seed=2).hidden, masked.hidden)
    assert masked.hidden.sum(0)[1:-1].min() > 0  # no place is spared
    other = ids.clone()
    other[:, 1:-1] = (ids[:, 1:-1] + 1) % 8
    assert torch.equal(mask(other, SPECIAL, MASK, 0.15, seed=1).hidden, masked.hidden)  # whatever the tokens are
    assert mask(ids[:, [0, 3, -1]], SPECIAL, MASK, 0.15).per_window.tolist() == [1] * 40


def test_figures_are_those_of_the_definition():
    ids, dense, sparse = windows(), table(1), table(2)
    masked = mask(ids, SPECIAL, MASK)
    steps = []
    found = compare({"dense": dense, "sparse": sparse}, masked, batch_size=7, progress=lambda *at: steps.append(at))
    assert steps[-1] == (40, 40)
    whole = {name: f(masked.ids, masked.hidden).double() for name, f in (("dense", dense), ("sparse", sparse))}
    nll = {name: F.cross_entropy(logits, masked.targets, reduction="none") for name, logits in whole.items()}
    for name, row in found.items():
        assert row.nll_per_token == pytest.approx(nll[name].mean().item(), rel=1e-9)
        assert row.pseudo_perplexity == pytest.approx(math.exp(nll[name].mean()), rel=1e-9)
        assert row.accuracy == pytest.approx((whole[name].argmax(-1) == masked.targets).double().mean().item())
    versus = found["sparse"].versus
    gap = (nll["sparse"] - nll["dense"]).view(40, 3).mean(1)
    assert versus.nll_difference == pytest.approx(gap.mean().item(), rel=1e-9)
    assert versus.nll_difference_stderr == pytest.approx((gap.std() / 40**0.5).item(), rel=1e-9)
    p, q = (whole[name].log_softmax(-1) for name in ("dense", "sparse"))
    assert versus.kl == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-9)
    assert found["dense"].versus is None and "pseudo_perplexity_ratio" in found["sparse"].report().to_dict()
    assert not any(key.startswith("perplexity") for key in found["sparse"].report().to_dict())


def test_windows_of_a_document_count_once():
    models = {"dense": table(1), "sparse": table(2)}
    documents = (None, torch.arange(40) // 10)
    alone, together = (compare(models, mask(windows(), SPECIAL, MASK, document=of)) for of in documents)
    assert alone["sparse"].versus.nll_difference == together["sparse"].versus.nll_difference
    assert alone["sparse"].nll_stderr != together["sparse"].nll_stderr
    assert compare(models, mask(windows(1), SPECIAL, MASK))["dense"].nll_stderr is None


def test_a_part_has_the_same_tokens_hidden():
    whole = mask(windows(), SPECIAL, MASK, document=torch.arange(40) // 10, available=90)
    for some, rows in ((whole.part(slice(4, 9)), list(range(4, 9))), (whole.spread(8), list(range(0, 40, 5)))):
        assert torch.equal(some.ids, whole.ids[rows]) and torch.equal(some.hidden, whole.hidden[rows])
        assert torch.equal(some.targets, whole.words[rows][some.hidden]) and len(some) == len(rows)
        assert torch.equal(some.document, whole.document[rows]) and some.n_tokens == 3 * len(rows)
        assert "evenly spaced among 90" in some.convention() and f"{len(rows)} windows of 22" in some.convention()
        assert all(torch.equal(a, b[rows]) for a, b in zip(some.inputs(slice(None)), whole.inputs(slice(None)),
                                                           strict=True))  # fmt: skip


@pytest.mark.parametrize("document", [None, torch.arange(40) // 10])
def test_told_as_a_perplexity_is(document):
    """The same numbers under the names that plans and reports go by, with the figure's own name beside them."""
    masked = mask(windows(), SPECIAL, MASK, document=document)
    models = {"dense": table(1), "sparse": table(2)}
    own, told = compare(models, masked), texts.compare(models, masked, 7)
    for name, row in own.items():
        assert told[name].perplexity == pytest.approx(row.pseudo_perplexity, rel=1e-12)
        assert told[name].perplexity_stderr == pytest.approx(row.pseudo_perplexity_stderr, rel=1e-9)
        assert told[name].versus == row.versus or name == "sparse"
    assert told["sparse"].versus.kl == pytest.approx(own["sparse"].versus.kl, rel=1e-12)
    count, samples = (40, "windows") if document is None else (4, "documents")
    assert (told.figure, told.count, told.samples, told.n_tokens) == ("pseudo-perplexity", count, samples, 120)
    assert f"standard errors over {count} {samples}" in told.convention


def test_what_is_run_of_a_model():
    """Masked tokens alone go through the head."""

    class Model:
        def __call__(self, ids):
            return self.predict(self.hidden(ids))

        def hidden(self, ids):
            return ids.double()[..., None]

        def predict(self, states):
            self.rows = len(states.flatten(0, -2))
            return states * torch.arange(V)

    model, masked = Model(), mask(windows(), SPECIAL, MASK)
    run = texts.saying(model)
    assert torch.equal(run(masked.ids), model(masked.ids)) and model.rows == masked.ids.numel()
    assert torch.equal(run(masked.ids, masked.hidden), model(masked.ids)[masked.hidden])
    run(*masked.inputs(slice(5)))
    assert model.rows == 15


def test_the_same_model_twice_differs_by_nothing():
    found = compare({"dense": table(1), "again": table(1)}, mask(windows(), SPECIAL, MASK))["again"].versus
    assert (found.nll_difference, found.perplexity_ratio, found.top1_agreement) == (0, 1, 1) and abs(found.kl) < 1e-12


def test_refusals():
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\), got 0"):
        mask(windows(), SPECIAL, MASK, 0)
    with pytest.raises(ValueError, match="window 1 holds special tokens alone"):
        mask(torch.tensor([[8, 1, 9], [8, 9, 9]]), SPECIAL, MASK)
    masked = mask(windows(), SPECIAL, MASK)
    with pytest.raises(ValueError, match="expected a row for each of 96 masks"):
        compare({"dense": lambda ids, hidden: torch.zeros(*ids.shape, V)}, masked)
    with pytest.raises(ValueError, match="infinite or undefined loss in window 0"):
        compare({"dense": lambda ids, hidden: torch.full((int(hidden.sum()), V), torch.nan)}, masked)
