"""M2-BERT by AutoModel after `import sparsify`, with the numbers that `sparsify.load` has."""

import json

import layouts_m2
import pytest
import torch
from helpers import relative_l2
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging

import sparsify
from sparsify.converters import load, write_folder
from sparsify.converters.tensors import read_config
from sparsify.hf.quantizer import SparsifyConfig
from sparsify.plan import FilterPlan, Plan

SITE = "bert.encoder.layer.0.attention.filter_fn"
CLASSES = {"mlm": AutoModelForMaskedLM, "classifier": AutoModelForSequenceClassification, "encoder": AutoModel}


@pytest.fixture(autouse=True)
def no_bars():
    logging.disable_progress_bar()


def ids(length=20):
    return torch.randint(5, len(layouts_m2.WORDS), (2, length))


def plan_for(p, taps=5):
    return Plan({site.name: FilterPlan("partial", taps) for site in p.sites}, f"taps {taps}")


def converted(folder, dialect="safetensors mlm", taps=5, **changed):
    """A published checkpoint under a plan, as `sparsify convert` writes it."""
    p = load(layouts_m2.write(folder / "source", dialect, **changed))
    plan = plan_for(p, taps) if taps else p.plan
    return write_folder(folder / "out", p, plan, {"plan.json": plan.to_json()})


def numbers(model, u, **inputs):
    """What the head says of ids."""
    output = model(u, **inputs)
    return output.pooler_output if "pooler_output" in output else output.logits


@torch.no_grad()
@pytest.mark.parametrize("dialect", layouts_m2.DIALECTS)
@pytest.mark.parametrize("taps", [None, 5])
def test_numbers_are_those_of_our_own_loader_bit_for_bit(tmp_path, dialect, taps):
    out, u = converted(tmp_path, dialect, taps), ids()
    ours = sparsify.load(out)
    assert (relative_l2(load(tmp_path / "source").model(u), ours.model(u)) > 1e-2) == bool(taps)
    model = CLASSES[ours.head].from_pretrained(out)
    assert torch.equal(numbers(model, u), ours.model(u)) and not model.training
    hidden = AutoModel.from_pretrained(out)(u)
    assert torch.equal(hidden.last_hidden_state, ours.model.hidden(u))
    assert torch.equal(hidden.pooler_output, ours.model.embed(u))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(numbers(CLASSES[ours.head].from_pretrained(tmp_path / "saved"), u), ours.model(u))
    assert torch.equal(load(tmp_path / "saved").model(u), ours.model(u))
    assert load(tmp_path / "saved").plan == ours.plan


@torch.no_grad()
@pytest.mark.parametrize("changed", [{}, {"pool_all": True}])
def test_an_encoder_pools_over_the_mask_if_it_is_one_of_those(tmp_path, changed):
    auto_map = {"AutoModelForSequenceClassification": "bert_layers.BertForTextEncoding"}
    out, u = converted(tmp_path, "retrieval", auto_map=auto_map, **changed), ids()
    mask, types = (torch.arange(20) < 12).long().expand(2, -1), (torch.arange(20) > 6).long().expand(2, -1)
    ours, model = load(out).model, AutoModel.from_pretrained(out)
    found = model(u, attention_mask=mask, token_type_ids=types).pooler_output
    assert ours.head == "encoder" and torch.equal(found, ours(u, mask, types))
    assert torch.equal(found, model(u, token_type_ids=types).pooler_output) != bool(changed)
    assert relative_l2(found, model(u, attention_mask=mask).pooler_output) > 1e-3


@torch.no_grad()
def test_a_published_model_goes_by_a_name_of_its_own_once_converted(tmp_path):
    """transformers' own BERT would take it else, and leave out all that it does not know."""
    out = converted(tmp_path)
    assert read_config(tmp_path / "source")["model_type"] == "bert" and read_config(out)["model_type"] == "m2_bert"
    assert type(AutoConfig.from_pretrained(out)).__module__ == "sparsify.hf.config"


@torch.no_grad()
def test_a_dense_model_is_put_under_a_plan_while_it_loads(tmp_path):
    out, u = converted(tmp_path, model_type="m2_bert"), ids()
    config = SparsifyConfig(load(out).plan)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "source", quantization_config=config)
    assert torch.equal(model(u).logits, load(out).model(u))


@torch.no_grad()
@pytest.mark.parametrize("untied", [False, True])
def test_words_read_and_predicted_stay_one_parameter_if_they_are(tmp_path, untied):
    plain = layouts_m2.weights()
    if untied:
        plain["cls.predictions.decoder.weight"] = plain["cls.predictions.decoder.weight"] + 1
    p = load(layouts_m2.write(tmp_path / "source", "mlm", plain=plain))
    out, u = write_folder(tmp_path / "out", p, plan_for(p), {}), ids()
    for _ in range(2):
        model = AutoModelForMaskedLM.from_pretrained(out)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) != untied
        assert torch.equal(model(u).logits, load(out).model(u))
        model.save_pretrained(out := tmp_path / "saved")


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "bar"), [(torch.bfloat16, 8e-2), (torch.float16, 1e-2)])
def test_half_precision_leaves_the_filters_alone(tmp_path, dtype, bar):
    out, u = converted(tmp_path), ids()
    exact, ours = load(out).model(u), load(out).filters[SITE].k
    k = AutoModelForMaskedLM.from_pretrained(out).get_submodule(f"{SITE}").long_conv.filter.k
    for model in (
        AutoModelForMaskedLM.from_pretrained(out, dtype=dtype),
        AutoModelForMaskedLM.from_pretrained(out).to(dtype),
    ):
        assert model(u).logits.dtype == dtype and relative_l2(model(u).logits, exact) < bar
        assert torch.equal(model.get_submodule(f"{SITE}").long_conv.filter.k, k)
        model.save_pretrained(tmp_path / "saved")
        assert torch.equal(load(tmp_path / "saved").filters[SITE].k, ours)


@torch.no_grad()
def test_losses(tmp_path):
    model, u = AutoModelForMaskedLM.from_pretrained(converted(tmp_path / "a")), ids()
    labels = torch.where(torch.arange(20) % 5 == 0, u, -100)
    output = model(u, labels=labels)
    counted = labels != -100
    assert output.loss.item() == pytest.approx(
        torch.nn.functional.cross_entropy(output.logits[counted], u[counted]).item()
    )
    assert torch.equal(model(u, return_dict=False)[0], output.logits)
    scores = AutoModelForSequenceClassification.from_pretrained(converted(tmp_path / "b", "safetensors"))
    output, labels = scores(u, labels=torch.tensor([0, 2])), torch.tensor([0, 2])
    assert output.loss.item() == pytest.approx(torch.nn.functional.cross_entropy(output.logits, labels).item())
    with pytest.raises(ValueError, match="takes input_ids"):
        model()


def test_a_dense_model_learns_its_filters_and_a_planned_one_keeps_them(tmp_path):
    u = ids()
    for taps in (None, 5):
        model = AutoModelForMaskedLM.from_pretrained(converted(tmp_path / str(taps), taps=taps)).train()
        model(u, labels=u).loss.backward()
        weight = model.get_submodule(f"{SITE}").implicit_filter_rev["0"].weight
        assert (weight.grad is not None and weight.grad.norm() > 0) == (taps is None)


@torch.no_grad()
def test_a_classifier_begins_from_a_language_model(tmp_path):
    """Its head is drawn; all the rest, trained positions of the filters too, is the checkpoint's."""
    out, u = converted(tmp_path), ids()
    model, ours = AutoModelForSequenceClassification.from_pretrained(out, num_labels=5), load(out).model
    assert model(u).logits.shape == (2, 5) and model(u).logits.norm() > 0
    assert torch.equal(model.bert(u), ours.hidden(u))
    model.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.head == "classifier" and torch.equal(again.model(u), model(u).logits)


@torch.no_grad()
def test_a_new_model_from_its_config_alone(tmp_path):
    config = AutoConfig.from_pretrained(converted(tmp_path, taps=None))
    model = AutoModelForMaskedLM.from_config(config).eval()
    assert model(ids()).logits.isfinite().all()
    assert model.get_submodule(f"{SITE}").pos_emb.t[0, -1] == 1


@pytest.mark.parametrize("cased", [False, True])
def test_auto_tokenizer_reads_a_vocabulary_as_we_do(tmp_path, cased):
    out = tmp_path / "out"
    source = layouts_m2.write(tmp_path / "source", "safetensors mlm")
    if cased:
        (source / "vocab.txt").write_text("\n".join([*layouts_m2.WORDS, "The"]) + "\n")
    write_folder(out, load(source), load(source).plan, {})
    ours, theirs = load(out).tokenizer, AutoTokenizer.from_pretrained(out)
    for text in ("The film was unable.", "the café, we saw!", "un-heard of"):
        assert theirs(text)["input_ids"] == ours.encode(text)
    pair = theirs("a film", "it was good")
    batch = ours.batch(["a film"], ["it was good"])
    assert pair["input_ids"] == batch.input_ids[0].tolist()
    assert pair["token_type_ids"] == batch.token_type_ids[0].tolist()
    assert (theirs("The")["input_ids"] == theirs("the")["input_ids"]) != cased


def test_a_tokenizers_own_settings_stay(tmp_path):
    source = layouts_m2.write(tmp_path / "source", "safetensors mlm")
    told = {"tokenizer_class": "BertTokenizer", "model_max_length": 32}
    (source / "tokenizer_config.json").write_text(json.dumps(told))
    out = write_folder(tmp_path / "out", load(source), load(source).plan, {})
    assert json.loads((out / "tokenizer_config.json").read_text()) == told
