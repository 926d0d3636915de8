"""What was saved loads by AutoModel after `import sparsify`, with the logits that `sparsify.load` has."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
import torch
from families import python
from helpers import ROOT, relative_l2
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging

import sparsify
from sparsify import hf
from sparsify.converters import load, write_folder
from sparsify.converters.tensors import read_config, read_tensors
from sparsify.cpu.linear import layers_of
from sparsify.hf.m2_bert import M2BertForMaskedLM
from sparsify.hf.quantizer import SparsifyConfig
from sparsify.plan import FilterPlan, Plan
from sparsify.plan.coefficients import Coefficients


@pytest.fixture(scope="session")
def modules(tmp_path_factory):
    return str(tmp_path_factory.mktemp("modules"))


@pytest.fixture(autouse=True)
def apart(monkeypatch, modules):
    """No bars, and no remote code in the cache of whoever runs this."""
    logging.disable_progress_bar()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)


def ids(length=40):
    return torch.randint(7, 11, (2, length))


def plan_for(p, taps=5):
    return Plan({site.name: FilterPlan("partial", taps) for site in p.sites}, f"taps {taps}")


def re_fitted(p):
    """A plan whose coefficients are not all the filters' own."""
    first, *_ = (site.name for site in p.sites)
    plan = plan_for(p)
    values = Coefficients(2 * p.filters[first].k[:, :5])
    return replace(plan, filters={**plan.filters, first: replace(plan.filters[first], values=values)})


def converted(folder: Path, dialect: str = "hf", plan_of=plan_for) -> Path:
    """A checkpoint of a dialect under a plan, as `sparsify convert` writes it."""
    p = load(layouts.write(folder / "source", dialect))
    plan = plan_of(p)
    return write_folder(folder / "out", p, plan, {"plan.json": plan.to_json(), "README.md": "# card"})


@pytest.fixture
def out(tmp_path):
    return converted(tmp_path)


def filter_fn(model):
    return model.trunk.layers[0].mixer.filter_fn


# --- loading ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("dialect", layouts.DIALECTS)
def test_logits_are_those_of_our_own_loader_bit_for_bit(tmp_path, dialect):
    out, u = converted(tmp_path, dialect), ids()
    ours = sparsify.load(out)
    auto = AutoModelForCausalLM if ours.head == "lm" else AutoModelForSequenceClassification
    model = auto.from_pretrained(out)
    assert torch.equal(model(u).logits, ours.model(u)) and not model.training
    dense = load(tmp_path / "source").model(u)
    assert relative_l2(dense, ours.model(u)) > 1e-3  # the plan matters
    hidden = AutoModel.from_pretrained(out)(u).last_hidden_state
    assert torch.equal(hidden, ours.model.backbone(u)) and hidden.shape == (2, 40, layouts.TINY.d_model)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(auto.from_pretrained(tmp_path / "saved")(u).logits, ours.model(u))
    again = load(tmp_path / "saved")
    assert torch.equal(again.model(u), ours.model(u)) and again.plan == ours.plan


@torch.no_grad()
@pytest.mark.parametrize("shift", [None, 0.05])
def test_a_dense_checkpoint_of_the_hub_needs_no_remote_code(tmp_path, shift):
    source, u = layouts.write(tmp_path / "source", "hf"), ids()
    said = {} if shift is None else {"shift": shift}
    model = AutoModelForCausalLM.from_pretrained(source, **said)
    assert torch.equal(model(u).logits, load(source, options=said).model(u))
    assert model.plan.is_dense and model.config.shift == (shift or 0.0)
    planned = AutoModelForCausalLM.from_pretrained(source, **said, quantization_config=SparsifyConfig(model.plan))
    assert torch.equal(planned(u).logits, model(u).logits)


@torch.no_grad()
def test_a_dense_model_is_put_under_a_plan_while_it_loads(tmp_path, out):
    source, u = tmp_path / "source", ids()
    plan = plan_for(load(source))
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=SparsifyConfig(plan))
    assert torch.equal(model(u).logits, load(out).model(u))
    model.save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").plan == plan


@torch.no_grad()
def test_coefficients_of_a_plan_come_along(tmp_path, out):
    """Loaded, saved, and still there after training mode; under a plan of the same taps the logits are others."""
    fitted, u = converted(tmp_path / "fitted", plan_of=re_fitted), ids()
    ours, model = sparsify.load(fitted), AutoModelForCausalLM.from_pretrained(fitted)
    assert torch.equal(model(u).logits, ours.model(u)) and model.plan == ours.plan
    assert relative_l2(load(out).model(u), ours.model(u)) > 1e-3
    assert torch.equal(model.train().eval()(u).logits, ours.model(u))
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "plan.safetensors").read_bytes() == (fitted / "plan.safetensors").read_bytes()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(u).logits, ours.model(u))
    assert torch.equal(load(tmp_path / "saved").model(u), ours.model(u))


def test_coefficients_that_are_not_there(tmp_path):
    fitted = converted(tmp_path, plan_of=re_fitted)
    with pytest.raises(ValueError, match="loads from the folder it was saved in; pass that"):
        SparsifyConfig(load(fitted).plan)
    (fitted / "plan.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="re-fitted coefficients are not there"):
        AutoModelForCausalLM.from_pretrained(fitted)


def test_a_checkpoint_of_another_family(tmp_path, out):
    with pytest.raises(ValueError, match=r"is a checkpoint of hyenadna, which M2BertForMaskedLM is not for"):
        M2BertForMaskedLM.from_pretrained(out)


ORDERS = {
    "sparsify first": "import sparsify; assert 'transformers' not in sys.modules; import transformers",
    "transformers first": "import transformers.models.auto.modeling_auto, transformers.quantizers; import sparsify",
}
SCRIPT = """
import sys; {order}
import torch
from transformers import AutoModelForCausalLM
with torch.no_grad():
    logits = AutoModelForCausalLM.from_pretrained({folder!r})(torch.arange(40)[None] % 4 + 7).logits
assert torch.equal(logits, sparsify.load({folder!r}).model(torch.arange(40)[None] % 4 + 7))
"""


@pytest.mark.parametrize("order", ORDERS)
def test_either_may_be_imported_first(tmp_path, out, order):
    done = python(SCRIPT.format(order=ORDERS[order], folder=str(out)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "could not register" not in done.stderr


FROM_HUB = """
import sparsify, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("me/sparse", revision={revision!r})
with torch.no_grad():
    torch.save(model(torch.arange(40)[None] % 4 + 7).logits, {to!r})
model.save_pretrained({saved!r})
"""


@torch.no_grad()
def test_a_model_on_the_hub_by_its_id_and_revision(tmp_path, hub):
    """A fresh process with an empty cache, weights in shards; the branch has moved on to something else since."""
    out = converted(tmp_path, plan_of=re_fitted)
    AutoModelForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()}
    revision = hub.store.create("me/sparse", files)
    hub.store.commit("me/sparse", "main", {"config.json": hub.store.keep(b"{}")}, "spoil")
    environment = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="0")
    script = FROM_HUB.format(revision=revision, to=str(tmp_path / "logits"), saved=str(tmp_path / "saved"))
    done = python(script, tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), load(out).model(torch.arange(40)[None] % 4 + 7))
    for name in ("plan.json", "plan.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == files[name]


FROM_A_FOLDER = """
import torch
import sparsify
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({folder!r})
with torch.no_grad():
    torch.save(model(torch.arange(300)[None] % 4 + 7).logits, {to!r})
model.save_pretrained({saved!r})
"""


@torch.no_grad()
def test_linear_layers_multiply_as_the_plan_says(tmp_path):
    """In a fresh process, bit for bit, and again from what that saved; not as a plan without them."""
    p = load(layouts.write(tmp_path / "source", s=layouts.Sizes(2, 32, 64, 322, order=8)))
    names = list(layers_of(p.model))
    plan = Plan(
        {site.name: FilterPlan("partial", 30) for site in p.sites}, "some", {}, dict.fromkeys(names[1::2], "bfloat16")
    )
    out, ids = write_folder(tmp_path / "out", p, plan, {}), torch.arange(300)[None] % 4 + 7
    expected = load(out).model(ids)
    script = FROM_A_FOLDER.format(folder=str(out), to=str(tmp_path / "logits"), saved=str(tmp_path / "saved"))
    done = python(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), expected)
    assert torch.equal(load(tmp_path / "saved").model(ids), expected)
    undo = sparsify.sparsify_(p, plan)
    assert torch.equal(p.model(ids), expected)
    undo()
    sparsify.sparsify_(p, replace(plan, linears={}))
    assert 1e-4 < relative_l2(p.model(ids), expected) < 3e-2


def test_a_failure_of_ours_does_not_break_transformers(monkeypatch):
    monkeypatch.setitem(hf.AFTER, "transformers", ["nowhere"])
    with pytest.warns(UserWarning, match=r"could not register with transformers \(.*nowhere.*\); use sparsify\.load"):
        hf.register("transformers")


def test_an_unknown_name_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        sparsify.lod  # noqa: B018


# --- dtypes, devices, files ------------------------------------------------------------------------------------------


WAYS = {
    "from_pretrained": lambda out, dtype: AutoModelForCausalLM.from_pretrained(out, dtype=dtype),
    "to": lambda out, dtype: AutoModelForCausalLM.from_pretrained(out).to(dtype),
    "method": lambda out, dtype: METHODS[dtype](AutoModelForCausalLM.from_pretrained(out)),
}
METHODS = {torch.bfloat16: torch.nn.Module.bfloat16, torch.float16: lambda model: model.half()}
BARS = {torch.bfloat16: 3e-2, torch.float16: 3e-3}


@torch.no_grad()
@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("way", WAYS)
def test_half_precision_leaves_the_filters_alone(tmp_path, out, dtype, way):
    exact, model, u = AutoModelForCausalLM.from_pretrained(out), WAYS[way](out, dtype), ids()
    k = exact.trunk.layers[0].mixer.long_conv.filter.k
    assert model(u).logits.dtype == dtype
    assert relative_l2(model(u).logits, exact(u).logits) < BARS[dtype]
    assert torch.equal(model.trunk.layers[0].mixer.long_conv.filter.k, k)
    assert filter_fn(model).pos_emb.z.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(load(tmp_path / "saved").filters["backbone.layers.0.mixer"].k[:, :5], k)


@torch.no_grad()
@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_device_map(out, device_map):
    pytest.importorskip("accelerate", reason="transformers places models with it")
    u = ids()
    model = AutoModelForCausalLM.from_pretrained(out, device_map=device_map)
    assert torch.equal(model(u).logits, load(out).model(u))


@torch.no_grad()
def test_what_is_saved_is_whole_and_the_hubs(tmp_path, out):
    """Tensors under the hub's names, the entry of config.json, and what lies beside; sharded where it must be."""
    model, u = AutoModelForCausalLM.from_pretrained(out), ids()
    model.save_pretrained(tmp_path / "saved", max_shard_size="10KB")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"README.md", "plan.json", "config.json", "model.safetensors.index.json"} <= names
    before, after = read_config(out), read_config(tmp_path / "saved")
    assert before["quantization_config"] == after["quantization_config"]
    stored = read_tensors(out)
    assert stored.keys() == read_tensors(tmp_path / "saved").keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in read_tensors(tmp_path / "saved").items())
    assert load(tmp_path / "saved").notes == ()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(u).logits, model(u).logits)
    model.save_pretrained(out)  # onto itself
    assert torch.equal(load(out).model(u), model(u).logits)


# --- what people do with a model -------------------------------------------------------------------------------------


@torch.no_grad()
def test_outputs_and_losses(tmp_path, out):
    model, u = AutoModelForCausalLM.from_pretrained(out), ids()
    output = model(u, labels=u, attention_mask=torch.ones_like(u))
    targets = u[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets)
    assert output.loss.item() == pytest.approx(expected.item())
    assert torch.equal(model(u, return_dict=False)[0], output.logits)
    scores = AutoModelForSequenceClassification.from_pretrained(converted(tmp_path / "b", "hf classifier"))
    labels = torch.tensor([0, 2])
    output = scores(u, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits, labels)
    assert output.logits.shape == (2, layouts.LABELS) and output.loss.item() == pytest.approx(expected.item())


@torch.no_grad()
def test_generate_takes_the_likeliest_token_each_time(out):
    model, u = AutoModelForCausalLM.from_pretrained(out), ids(20)
    grown = model.generate(u, max_new_tokens=5, do_sample=False, pad_token_id=4)
    for _ in range(5):
        u = torch.cat([u, model(u).logits[:, -1:, : model.tokens].argmax(-1)], dim=1)  # padding rows are no tokens
    assert torch.equal(grown, u)


def test_a_dense_model_learns_its_filters_and_a_planned_one_keeps_them(tmp_path, out):
    u = ids()
    for folder, learns in ((tmp_path / "source", True), (out, False)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        before = model(u).logits.detach()
        model.train()
        model(u, labels=u).loss.backward()
        weight = filter_fn(model).implicit_filter["0"].weight
        assert (weight.grad is not None and weight.grad.norm() > 0) == learns
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * (0 if p.grad is None else p.grad)
            model.eval()
            assert relative_l2(model(u).logits, before) > 1e-3
            model.save_pretrained(tmp_path / f"tuned-{learns}")
            tuned = load(tmp_path / f"tuned-{learns}")
            assert torch.equal(tuned.model(u), model(u).logits)
            assert any("not those that the plan was made for" in note for note in tuned.notes) != learns


@torch.no_grad()
def test_a_classifier_begins_from_a_language_model(out):
    model, u = AutoModelForSequenceClassification.from_pretrained(out, num_labels=5), ids()
    ours = load(out).model
    assert model(u).logits.shape == (2, 5)
    assert torch.equal(model.trunk(u), ours.backbone(u))


@torch.no_grad()
def test_a_new_model_from_its_config_alone(tmp_path):
    config = AutoConfig.from_pretrained(layouts.write(tmp_path / "source", "hf"))
    model = AutoModelForCausalLM.from_config(config).eval()
    assert model(ids()).logits.isfinite().all() and filter_fn(model).pos_emb.t[0, -1] == 1
    with pytest.raises(ValueError, match="config lacks d_model, d_inner"):
        AutoModelForCausalLM.from_config(type(config)())


# --- other people's code ---------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path):
    return with_code(tmp_path, plan_for)


def with_code(tmp_path, plan_of):
    """A planned checkpoint whose config.json asks for code that lies beside it."""
    source = layouts.write(tmp_path / "source", "hf")
    config = json.loads((source / "config.json").read_text())
    code = {"AutoConfig": "remote_code.OtherConfig", "AutoModelForCausalLM": "remote_code.OtherForCausalLM"}
    config |= {"model_type": "other_hyena", "auto_map": code, "d_inner": layouts.TINY.d_inner}
    (source / "config.json").write_text(json.dumps(config))
    p = load(source)
    out = write_folder(tmp_path / "out", p, plan_of(p), {})
    assert not list(out.glob("*.py"))
    for folder in (source, out):
        shutil.copy(ROOT / "tests" / "support" / "remote_code.py", folder)
    return out


def remote(folder, **kwargs):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **kwargs)


@torch.no_grad()
def test_remote_code_runs_the_planned_convolutions(tmp_path, foreign):
    model, dense, u = remote(foreign), remote(tmp_path / "source"), ids()
    assert type(model).__module__.startswith("transformers_modules")
    assert relative_l2(dense(u).logits, load(tmp_path / "source", options={"shift": 0.05}).model(u)) < 1e-5
    ours = load(foreign).model(u)
    calls = type(filter_fn_of(dense)).calls
    assert relative_l2(model(u).logits, ours) < 1e-5 < relative_l2(dense(u).logits, ours)
    assert type(filter_fn_of(dense)).calls == calls + 2  # the dense model's alone: planned filters are not made anew
    for changed, bar in ((model.half(), 3e-3), (remote(foreign, dtype=torch.bfloat16), 3e-2)):
        assert relative_l2(changed(u).logits, ours) < bar
        assert filter_fn_of(changed).conv.filter.k.dtype == torch.float32


def filter_fn_of(model):
    return model.hyena.backbone.layers[0].mixer.filter_fn


@torch.no_grad()
@pytest.mark.parametrize("plan_of", [plan_for, re_fitted])
def test_remote_code_is_saved_and_loaded_again(tmp_path, plan_of):
    foreign = with_code(tmp_path, plan_of)
    model, u = remote(foreign), ids()
    assert relative_l2(model(u).logits, load(foreign).model(u)) < 1e-5
    model.save_pretrained(tmp_path / "saved")
    assert read_config(tmp_path / "saved")["quantization_config"] == read_config(foreign)["quantization_config"]
    assert torch.equal(remote(tmp_path / "saved")(u).logits, model(u).logits)


@torch.no_grad()
@pytest.mark.parametrize("copied", [False, True])
def test_remote_code_follows_its_weights(foreign, copied):
    """As the same weights make it in our code, though torch does not count changes through `.data`."""
    model, u = remote(foreign), ids()
    before = model(u).logits
    changed = copy.deepcopy(model) if copied else model
    with pytest.warns(UserWarning, match="have changed; its filter follows them"):
        for weight in changed.parameters():
            weight.data.mul_(1.1)
        after = changed(u).logits
    changed.save_pretrained(foreign / "changed")
    assert relative_l2(after, load(foreign / "changed").model(u)) < 1e-6 and relative_l2(after, before) > 1e-2
    assert torch.equal(model(u).logits, before) == copied


def test_remote_code_does_not_learn_its_planned_filters(foreign):
    model, u = remote(foreign).train(), ids()
    model(u).logits.square().sum().backward()
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen and all("filter_fn" in name and not name.endswith("filter_fn.bias") for name in frozen)
    with pytest.raises(ValueError, match="which modelling code of others does not get here"):
        model.requires_grad_(True)(u)


def test_remote_code_of_another_structure_is_refused(foreign):
    code = foreign / "remote_code.py"
    code.write_text(code.read_text().replace("def filter(", "def make(").replace(".filter(", ".make("))
    with pytest.raises(ValueError, match=r"OtherForCausalLM has no module backbone.* use sparsify\.load instead"):
        remote(foreign)


WITHOUT = """
import sys; sys.modules["sparsify"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)
with torch.no_grad():
    torch.save(model(torch.arange(40)[None] % 4 + 7).logits, {to!r})
"""


@torch.no_grad()
def test_without_this_package_the_folder_is_the_dense_model_and_says_so(tmp_path, foreign):
    done = python(WITHOUT.format(folder=str(foreign), to=str(tmp_path / "logits")), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Unknown quantization type, got sparsify" in done.stderr
    dense = load(tmp_path / "source", options={"shift": 0.05}).model(torch.arange(40)[None] % 4 + 7)
    assert relative_l2(torch.load(tmp_path / "logits"), dense) < 1e-5


# --- refusals --------------------------------------------------------------------------------------------------------


def rewrite(folder, **entry):
    config = read_config(folder)
    config["quantization_config"] |= entry
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"format_version": 2}, "format_version 2, this sparsify reads 1; upgrade sparsify"),
        ({"format_version": "x"}, r"format_version 'x'.*sparsify convert SRC OUT --force"),
        ({"plan": None}, r"has no plan; .*sparsify convert SRC OUT --force"),
        ({"plan": {"schema": 1}}, r"schema 1 is not 3 or 4; .*sparsify convert"),
        ({"plan": {"schema": 99}}, "schema 99 is not 3 or 4; upgrade sparsify"),
        ({"plan": Plan.dense(["elsewhere"]).to_dict()}, "does not fit the model"),
    ],
)
def test_other_formats_say_what_to_do(out, entry, says):
    rewrite(out, **entry)
    for loader in (load, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=says):
            loader(out)


@torch.no_grad()
def test_an_entry_from_before_formats_had_numbers_is_read(out):
    u, config = ids(), read_config(out)
    expected = load(out).model(u)
    for name in ("format_version", "source"):
        del config["quantization_config"][name]
    (out / "config.json").write_text(json.dumps(config))
    assert torch.equal(load(out).model(u), expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(u).logits, expected)


def test_pickles_and_missing_ids_are_told(tmp_path, out):
    with pytest.raises(ValueError, match="takes input_ids"):
        AutoModelForCausalLM.from_pretrained(out)()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        (out / "model.safetensors").unlink()
        AutoModelForCausalLM.from_pretrained(out)
