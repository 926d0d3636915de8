"""The family of the example: one file, and everything works with it."""

import sys

import pytest
import torch
from helpers import ROOT
from safetensors.torch import save_file

import sparsify
from sparsify.converters import registry
from sparsify.fftconv import fftconv_ref
from sparsify.plan import policies

EXAMPLE = ROOT / "examples" / "add_a_family"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(registry, "ADDED", {})
    import toy

    registry.register("toy", toy)
    yield toy
    sys.modules.pop("toy")


@pytest.fixture
def checkpoint(toy, tmp_path):
    torch.manual_seed(0)
    model = toy.Toy(rows=256, width=12, layers=2, states=4, context=256)
    for name, parameter in model.named_parameters():
        if name.endswith(("residues", "skip")):
            torch.nn.init.normal_(parameter)
        elif name.endswith("log_rates"):
            torch.nn.init.uniform_(parameter, -5, 0)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"context": 256}')
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 90)
    return folder


def test_a_checkpoint_is_known_by_its_tensors(toy, checkpoint):
    found = sparsify.load(checkpoint)
    assert (found.family, found.context, len(found.sites)) == ("toy", 256, 2)
    with torch.no_grad():
        y, u = found.model(ids := torch.randint(32, 127, (2, 100))), found.model.layers[0]
        assert y.shape == (2, 100, 256)
        k = u.filter.materialize(100)
        g = torch.randn(2, 12, 100)
        assert (u.long_conv(g) - fftconv_ref(g, k)).norm() < 1e-6 * fftconv_ref(g, k).norm()
        undo = sparsify.sparsify_(found, policies.taps(8))
        assert (found.model(ids) - y).norm() > 1e-3 * y.norm()
        undo()
        assert torch.equal(found.model(ids), y)


def test_a_filter_without_a_last_tap(toy, checkpoint):
    """It has as many taps as are asked for."""
    site = sparsify.load(checkpoint).sites[0]
    assert [site.materialize(n).taps for n in (10, 5000)] == [10, 5000] and site.materialize().taps == 256
    assert torch.equal(site.materialize(10).k, site.materialize().k[:, :10])


def test_it_is_converted_measured_and_read_again(toy, checkpoint, tmp_path):
    out, data = tmp_path / "out", tmp_path / "text.txt"
    done = sparsify.convert(str(checkpoint), out, taps=32, data=data, context=128)
    found = sparsify.evaluate(str(out), data, baseline=str(checkpoint), context=128)
    assert done["evaluation"]["perplexity"] == found["perplexity"] != found["dense"]["perplexity"]
    assert {path.name for path in out.iterdir()} >= {"model.safetensors", "report.html", "plan.json", "README.md"}


def test_a_plan_within_a_budget(toy, checkpoint, tmp_path):
    found = sparsify.convert(
        str(checkpoint), tmp_path / "out", max_ppl_increase=0.02, calibration=tmp_path / "text.txt", context=128,
        target="kept",
    )  # fmt: skip
    assert found["planned"]["chosen"]["fits"] and found["planned"]["chosen"]["gain"] > 1


def test_gradients_and_changed_weights(toy, checkpoint):
    model = sparsify.load(checkpoint).model
    ids = torch.randint(32, 127, (1, 50))
    with torch.no_grad():
        before = model(ids)
        model.layers[0].filter.residues.mul_(2)
        assert (model(ids) - before).norm() > 1e-3 * before.norm()
    model.layers[0].filter.requires_grad_(True)
    model(ids).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.layers[0].filter.parameters())


def test_refusals(toy):
    with pytest.raises(ValueError, match="there is a family hyenadna already"):
        registry.register("hyenadna", toy)
    with pytest.raises(ValueError, match=r"the family other lacks .*build.*matches.*sites"):
        registry.register("other", object())
