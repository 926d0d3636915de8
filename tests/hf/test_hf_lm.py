"""Hyena LM by AutoModel after `import sparsify`, here and in a fresh process, with the logits of `sparsify.load`."""

import json

import layouts_lm
import pytest
import torch
from families import python
from helpers import relative_l2
from layouts_lm import ROWS, TOKENS
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import sparsify
from sparsify.converters import load, write_folder
from sparsify.converters.tensors import read_config, read_tensors
from sparsify.hf.quantizer import SparsifyConfig
from sparsify.plan import FilterPlan, Plan

SITE = "backbone.layers.0.mixer"
Z = f"{SITE}.filter_fn.pos_emb.z"


@pytest.fixture(autouse=True)
def no_bars():
    logging.disable_progress_bar()


def ids(length=40):
    return torch.randint(0, TOKENS, (2, length))


def converted(folder, dialect="published", taps=5, plain=None, **config):
    """A published checkpoint under a plan, as `sparsify convert` writes it."""
    p = load(layouts_lm.write(folder / "source", dialect, plain, **config))
    filters = {site.name: FilterPlan("partial", taps) if taps else FilterPlan("dense") for site in p.sites}
    plan = Plan(filters, f"taps {taps}")
    return write_folder(folder / "out", p, plan, {"plan.json": plan.to_json()})


@torch.no_grad()
@pytest.mark.parametrize("dialect", layouts_lm.DIALECTS)
@pytest.mark.parametrize("taps", [None, 5])
def test_logits_are_those_of_our_own_loader_bit_for_bit(tmp_path, dialect, taps):
    out, u = converted(tmp_path, dialect, taps), ids()
    ours, model = sparsify.load(out), AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model(u).logits, ours.model(u)) and not model.training
    assert (relative_l2(load(tmp_path / "source").model(u), ours.model(u)) > 1e-3) == bool(taps)
    hidden = AutoModel.from_pretrained(out)(u).last_hidden_state
    assert torch.equal(hidden, ours.model.backbone(u)) and hidden.shape == (2, 40, layouts_lm.TINY.d_model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(u).logits, ours.model(u))
    again = load(tmp_path / "saved")
    assert torch.equal(again.model(u), ours.model(u)) and again.plan == ours.plan


@torch.no_grad()
@pytest.mark.parametrize("modulate", [False, True])
def test_what_the_weights_do_not_tell_is_kept(tmp_path, modulate):
    out, u = converted(tmp_path, modulate=modulate), ids()
    model = AutoModelForCausalLM.from_pretrained(out)
    model.save_pretrained(tmp_path / "saved")
    config = read_config(tmp_path / "saved")
    assert config["modulate"] is modulate and (config["d_model"], config["max_seq_len"]) == (12, 64)
    assert config["model_type"] == "hyena_lm" and "shift" not in config and config["vocab_size"] == TOKENS
    assert torch.equal(load(tmp_path / "saved").model(u), model(u).logits)


@torch.no_grad()
@pytest.mark.parametrize("untied", [False, True])
def test_words_read_and_predicted_stay_one_parameter_if_they_are(tmp_path, untied):
    out, u = converted(tmp_path, plain=layouts_lm.untied() if untied else None), ids()
    for _ in range(2):
        model = AutoModelForCausalLM.from_pretrained(out)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) != untied
        assert torch.equal(model(u).logits, load(out).model(u))
        model.save_pretrained(out := tmp_path / "saved")
    assert ("lm_head.weight" in read_tensors(out)) == untied


@torch.no_grad()
def test_a_dense_model_is_put_under_a_plan_while_it_loads(tmp_path):
    out, u = converted(tmp_path), ids()
    dense = layouts_lm.write(tmp_path / "dense", model_type="hyena_lm")
    config = SparsifyConfig(load(out).plan)
    model = AutoModelForCausalLM.from_pretrained(dense, quantization_config=config)
    assert torch.equal(model(u).logits, load(out).model(u))


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3)])
def test_half_precision_leaves_the_filters_alone(tmp_path, dtype, bar):
    """Their trained positions, too, which a stored half would spoil for good."""
    out, u = converted(tmp_path), ids()
    exact = load(out)
    for model in (
        AutoModelForCausalLM.from_pretrained(out, dtype=dtype),
        AutoModelForCausalLM.from_pretrained(out).to(dtype),
    ):
        assert model(u).logits.dtype == dtype and relative_l2(model(u).logits, exact.model(u)) < bar
        assert torch.equal(model.get_submodule(f"{SITE}").long_conv.filter.k, exact.filters[SITE].k[:, :5])
        model.save_pretrained(tmp_path / "saved")
        assert torch.equal(read_tensors(tmp_path / "saved")[Z], read_tensors(out)[Z])


@torch.no_grad()
def test_outputs_and_losses(tmp_path):
    model, u = AutoModelForCausalLM.from_pretrained(converted(tmp_path)), ids()
    output = model(u, labels=u, attention_mask=torch.ones_like(u))
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), u[:, 1:].flatten())
    assert output.loss.item() == pytest.approx(expected.item())
    assert torch.equal(model(u, return_dict=False)[0], output.logits)
    with pytest.raises(ValueError, match="takes input_ids"):
        model()


@torch.no_grad()
@pytest.mark.parametrize("sample", [False, True])
def test_generated_ids_are_tokens(tmp_path, sample):
    """Though the model likes the padding of its vocabulary best."""
    plain = layouts_lm.untied()
    plain["lm_head.weight"][TOKENS:] *= 100
    out = converted(tmp_path, plain=plain)
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "saved")
    for folder in (out, tmp_path / "saved"):
        model, u = AutoModelForCausalLM.from_pretrained(folder), ids(20)
        assert (model(u).logits.argmax(-1) >= TOKENS).any() and model.config.eos_token_id == TOKENS - 1
        grown = model.generate(u, max_new_tokens=5, do_sample=sample, pad_token_id=TOKENS - 1)
        assert grown.shape == (2, 25) and grown.max() < TOKENS
        if not sample:
            for _ in range(5):
                u = torch.cat([u, model(u).logits[:, -1:, :TOKENS].argmax(-1)], dim=1)
            assert torch.equal(grown, u)


def test_a_dense_model_learns_its_positions_and_a_planned_one_keeps_them(tmp_path):
    u = ids()
    for taps in (None, 5):
        model = AutoModelForCausalLM.from_pretrained(converted(tmp_path / str(taps), taps=taps)).train()
        model(u, labels=u).loss.backward()
        z = model.get_parameter(Z)
        assert (z.grad is not None and z.grad.norm() > 0) == (taps is None)


@torch.no_grad()
def test_a_new_model_from_its_config_alone(tmp_path):
    AutoModelForCausalLM.from_pretrained(converted(tmp_path, taps=None)).save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "saved")).eval()
    logits = model(ids()).logits
    assert logits.isfinite().all() and logits.shape == (2, 40, ROWS)
    assert model.get_submodule(f"{SITE}.filter_fn").pos_emb.t[0, -1] == 1


FRESH = """
import sys, sparsify, torch
from transformers import AutoModelForCausalLM
ids = torch.arange(40)[None] * 1000
with torch.no_grad():
    torch.save(AutoModelForCausalLM.from_pretrained({folder!r})(ids).logits, {to!r})
"""


@torch.no_grad()
def test_a_fresh_process_has_the_same_logits(tmp_path):
    out = converted(tmp_path)
    done = python(FRESH.format(folder=str(out), to=str(tmp_path / "logits")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), load(out).model(torch.arange(40)[None] * 1000))


@pytest.mark.parametrize("kind", ["vocab.json", "tokenizer.json"])
def test_auto_tokenizer_reads_a_vocabulary_as_we_do(tmp_path, kind):
    source = layouts_lm.write(tmp_path / "source")
    layouts_lm.write_vocabulary(source)
    if kind == "tokenizer.json":
        load(source).tokenizer.backend.save(str(source / kind))
        for name in ("vocab.json", "merges.txt"):
            (source / name).unlink()
    p = load(source)
    out = write_folder(tmp_path / "out", p, p.plan, {})
    assert (out / kind).is_file()
    ours, theirs = load(out).tokenizer, AutoTokenizer.from_pretrained(out)
    for text in ("the theory", " the café,\n\n we saw!", f"the end{layouts_lm.END}in"):
        assert theirs(text)["input_ids"] == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text


def test_a_tokenizers_own_settings_stay(tmp_path):
    source = layouts_lm.write_vocabulary(layouts_lm.write(tmp_path / "source"))
    told = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    out = write_folder(tmp_path / "out", load(source), load(source).plan, {})
    assert json.loads((out / "tokenizer_config.json").read_text()) == told
