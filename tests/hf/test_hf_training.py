"""What people do with a transformers model, they can do with ours: Trainer, LoRA, hooks, checkpointing, DDP."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, auto, hyenadna, ids, logits, saved, trainer
from helpers import ROOT, relative_l2
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers import AutoModelForSequenceClassification as ForClasses

from sparsify.converters import load
from sparsify.converters.tensors import read_config

pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate; the extra `test` brings it")
PLANS = {"dense": None, "taps": 9}


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_equals_one_without_a_break(family, plan, tmp_path):
    out = saved(family, tmp_path, PLANS[plan])
    whole = auto(family).from_pretrained(out)
    trainer(whole, tmp_path / "whole").train()
    half = auto(family).from_pretrained(out)
    trainer(half, tmp_path / "half", max_steps=3).train()
    resumed = auto(family).from_pretrained(out)
    trainer(resumed, tmp_path / "half").train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-3"))
    assert same(whole, resumed) == [] and torch.equal(logits(whole), logits(resumed))
    assert len(same(whole, half)) > 3  # the second half moved something


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_best_model_comes_back_whole(family, plan, tmp_path):
    """The learning rate is so high that the first checkpoint is the best one."""
    out = saved(family, tmp_path, PLANS[plan])
    model = auto(family).from_pretrained(out)
    run = trainer(
        model, tmp_path / "run", learning_rate=0.3, save_steps=1, max_steps=3, eval_strategy="steps", eval_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    run.train()
    best = Path(run.state.best_model_checkpoint)
    stored = load_file(best / "model.safetensors")
    names = dict(model.named_parameters()) | dict(model.named_buffers())
    assert stored.keys() <= names.keys() and len(stored) >= len(names) - 1  # all but a tied head
    assert [name for name in stored if not torch.equal(names[name], stored[name])] == []
    assert torch.equal(logits(model), logits(auto(family).from_pretrained(best)))


@pytest.mark.parametrize("family", FAMILIES)
def test_one_set_of_names(family, tmp_path):
    """Parameters, state dict and file agree; strictly loaded, partly loaded, and by the names of other dialects."""
    out = saved(family, tmp_path, None)
    model = auto(family).from_pretrained(out)
    model.save_pretrained(tmp_path / "again")
    stored, own = load_file(tmp_path / "again" / "model.safetensors"), model.state_dict()
    assert stored.keys() <= own.keys()
    assert {name for name, _ in (*model.named_parameters(), *model.named_buffers())} <= own.keys()
    fresh = auto(family).from_config(model.config)
    assert fresh.load_state_dict(stored) == torch.nn.modules.module._IncompatibleKeys([], [])
    assert same(model, fresh) == []
    net = load(out).model
    nets = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for target in (net, auto(family).from_config(model.config)):
        for names in (stored, nets, {f"module.{name}": tensor for name, tensor in stored.items()}):
            with torch.no_grad():
                for weight in target.parameters():
                    weight.fill_(7)
            target.load_state_dict(names)
            assert not any((weight == 7).any() for weight in target.parameters())
    one = next(iter(stored))
    assert len(model.load_state_dict({one: stored[one]}, strict=False).missing_keys) >= len(own) - 2


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_load_that_restores_nothing_is_an_error(family, strict, tmp_path):
    out = saved(family, tmp_path, None)
    for model in (auto(family).from_pretrained(out), load(out).model):
        with pytest.raises(ValueError, match="none of the 1 tensors"):
            model.load_state_dict({"encoder.block.0.weight": torch.zeros(3)}, strict=strict)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_saved_unchanged_is_what_the_plan_was_made_for(family, tmp_path, caplog):
    out = saved(family, tmp_path, 9)
    model = auto(family).from_pretrained(out)
    model.save_pretrained(tmp_path / "again")
    assert not any("are not those" in note for note in load(tmp_path / "again").notes)
    assert "are not those" not in caplog.text
    with torch.no_grad():
        next(model.parameters()).add_(1)
    model.save_pretrained(tmp_path / "changed")
    assert any("are not those" in note for note in load(tmp_path / "changed").notes)
    logging = __import__("transformers").utils.logging
    logging.enable_propagation()
    auto(family).from_pretrained(tmp_path / "changed")
    logging.disable_propagation()
    assert "are not those" in caplog.text


# --- layers and hooks ------------------------------------------------------------------------------------------------


def watched(family, model):
    """Modules that people look into: blocks, mixers, norms, linears."""
    block = model.trunk.layers[0] if family != "m2_bert" else model.bert.encoder.layer[0]
    return {name or "block": part for name, part in block.named_modules() if not fires_never(name, part)}


def fires_never(name, part):
    """What makes a filter is not called as a module, and containers are not."""
    return (
        "filter_fn" in name
        or isinstance(part, nn.ModuleDict)
        or name.endswith("long_conv")
        or not list(part.parameters())
    )


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_fire_alike_with_and_without_gradients(family, plan, tmp_path, small_tiles):
    model = auto(family).from_pretrained(saved(family, tmp_path, PLANS[plan])).eval()
    plain, counts = logits(model, ids()), {True: {}, False: {}}
    for with_gradients, seen in counts.items():
        handles = [
            part.register_forward_hook(lambda m, i, o, name=name, seen=seen: seen.update({name: seen.get(name, 0) + 1}))
            for name, part in watched(family, model).items()
        ]
        with torch.set_grad_enabled(with_gradients):
            hooked = model(ids()).logits
        for handle in handles:
            handle.remove()
        assert relative_l2(hooked, plain) < 1e-5
    assert counts[True] == counts[False] == dict.fromkeys(watched(family, model), 1)
    backward = []
    handles = [p.register_full_backward_hook(lambda *_: backward.append(1)) for p in watched(family, model).values()]
    model(ids()).logits.sum().backward()
    assert len(backward) == len(handles)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_activation_patching(family, tmp_path):
    """A hook that replaces a block's output is heard without gradients, too, and its input stays as it was."""
    model = auto(family).from_pretrained(saved(family, tmp_path, None)).eval()
    block = watched(family, model)["block"]
    kept = []
    block.register_forward_hook(lambda m, i, o: (kept.append((o, o.clone())), torch.zeros_like(o))[1])
    patched = model(ids()).logits
    assert not torch.equal(patched[:, 0] * 0 + patched[:, :1].squeeze(1), patched[:, 0] * 0)
    again = model(ids(24).flip(0)).logits
    assert all(torch.equal(now, before) for now, before in kept) and len(kept) == 2
    if family != "m2_bert":  # whose positions differ, but not its words
        assert torch.equal(patched[:1], again[1:]) or relative_l2(patched[:1], again[1:]) < 1e-6


class Wrapped(nn.Module):
    """As adapters and quantisers put one in the place of a linear layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_layer_may_stand_where_ours_did(family, plan, tmp_path, small_tiles):
    model = auto(family).from_pretrained(saved(family, tmp_path, PLANS[plan])).eval()
    expected = logits(model, ids())
    for name, part in list(model.named_modules()):
        if isinstance(part, nn.Linear | nn.LayerNorm):
            parent, _, child = name.rpartition(".")
            if isinstance(model.get_submodule(parent), nn.ModuleDict):
                model.get_submodule(parent)[child] = Wrapped(part)
            else:
                setattr(model.get_submodule(parent), child, Wrapped(part))
    found = logits(model, ids())
    assert relative_l2(found, expected) < 1e-5
    model(ids()).logits.sum().backward()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, Wrapped):
                part.layer.weight.mul_(0.5)
    with pytest.warns(UserWarning, match="have changed") if plan == "taps" else _nothing():
        assert relative_l2(logits(model, ids()), found) > 1e-2  # filters follow their new layers, too
    if family != "m2_bert":
        with torch.no_grad():
            assert relative_l2(model.stream(2).feed(ids()), logits(model, ids())) < 1e-4


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_an_identity_where_shapes_allow(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, None)).eval()
    block = model.trunk.layers[1]
    block.mixer.out_proj, block.norm2, block.mlp = nn.Identity(), nn.Identity(), nn.Identity()
    assert logits(model).isfinite().all()
    model.trunk.layers[0] = nn.Identity()
    assert logits(model).isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_quantised_layers(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, 9)).eval()
    expected = logits(model)
    for layer in model.trunk.layers:
        plain = nn.Linear(layer.mlp.fc1.in_features, layer.mlp.fc1.out_features)
        plain.load_state_dict(layer.mlp.fc1.state_dict())
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(plain), {nn.Linear}, dtype=torch.qint8)
        layer.mlp.fc1 = quantised[0]
    assert 1e-6 < relative_l2(logits(model), expected) < 5e-2


# --- LoRA ------------------------------------------------------------------------------------------------------------

TARGETS = {
    "hyenadna": ["in_proj", "out_proj", "fc1"],
    "hyena_lm": ["in_proj", "out_proj", "fc2"],
    "m2_bert": ["in_linear", "out_linear"],
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_saves_loads_and_infers(family, plan, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `test` brings peft")
    out = saved(family, tmp_path, PLANS[plan])
    base = auto(family).from_pretrained(out)
    before = logits(base)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=TARGETS[family], r=4))
    assert relative_l2(logits(model), before) < 1e-5  # B is zero at first
    trainer(model, tmp_path / "run", max_steps=3).train()
    after = logits(model)
    assert relative_l2(after, before) > 1e-3
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(auto(family).from_pretrained(out), tmp_path / "adapter")
    assert torch.equal(logits(again), after)
    merged = again.merge_and_unload()
    assert relative_l2(logits(merged), after) < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert relative_l2(logits(auto(family).from_pretrained(tmp_path / "merged")), after) < 1e-5


def test_soft_prompts(tmp_path):
    peft = pytest.importorskip("peft", reason="the extra `test` brings peft")
    base = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, 9))
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=base.config.d_model,
                                     num_layers=2, num_attention_heads=1)  # fmt: skip
    model = peft.get_peft_model(base, config)
    model(input_ids=ids(), attention_mask=torch.ones_like(ids()), labels=ids()).loss.backward()
    (prompt,) = [w for w in model.parameters() if w.requires_grad]
    assert prompt.grad.norm() > 0


def test_input_require_grads(tmp_path):
    """As LoRA and checkpointing ask for it on a frozen model: no in-place error, and the right gradient."""
    model = AutoModelForCausalLM.from_pretrained(saved("hyenadna", tmp_path, None)).requires_grad_(False)
    model.enable_input_require_grads()
    kept = []
    model.get_input_embeddings().register_forward_hook(lambda m, i, o: kept.append(o))
    model(ids()).logits.square().sum().backward()
    embedded = kept[0].detach().requires_grad_()
    model(inputs_embeds=embedded).logits.square().sum().backward()
    assert torch.equal(kept[0].grad, embedded.grad) and embedded.grad.norm() > 0


# --- outputs and knobs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states(family, gradients, tmp_path, small_tiles):
    out = saved(family, tmp_path, 9)
    model, trunk = auto(family).from_pretrained(out).eval(), AutoModel.from_pretrained(out).eval()
    with torch.set_grad_enabled(gradients):
        output = model(ids(), output_hidden_states=True)
        states = output.hidden_states
        layers = model.config.num_hidden_layers
        assert len(states) == layers + 1 and len({state.data_ptr() for state in states}) == layers + 1
        plain = model(ids())
        assert plain.hidden_states is None and torch.equal(plain.logits, output.logits)
        head = model.lm_head if family != "m2_bert" else model.cls.predictions
        assert torch.equal(head(states[-1]), output.logits)
        assert torch.equal(trunk(ids(), output_hidden_states=True).hidden_states[-1], states[-1])
        if family != "m2_bert":
            assert torch.equal(states[0], model.get_input_embeddings()(ids()))
        model.config.output_hidden_states = True
        assert len(model(ids(), return_dict=False)[1]) == layers + 1
        model.config.output_hidden_states, model.config.return_dict = False, False
        assert isinstance(model(ids()), tuple)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_in_place_of_ids(family, tmp_path):
    model = auto(family).from_pretrained(saved(family, tmp_path, 9)).eval()
    embedded = model.get_input_embeddings()(ids())
    before = embedded.clone()
    assert torch.equal(model(inputs_embeds=embedded).logits, model(ids()).logits)
    assert torch.equal(embedded, before)  # nothing is computed in the caller's own tensor
    with pytest.raises(ValueError, match="got both"):
        model(ids(), inputs_embeds=embedded)
    with pytest.raises(ValueError, match="got none"):
        model()
    with pytest.raises(TypeError, match="takes no position_ids"):
        model(ids(), position_ids=ids())


@pytest.mark.parametrize("family", FAMILIES)
def test_another_size_of_the_vocabulary(family, tmp_path):
    """M2-BERT's grows, and loads again; the Hyena models say no before anything changes."""
    model = auto(family).from_pretrained(saved(family, tmp_path, 9)).eval()
    before, rows = logits(model), model.get_input_embeddings().weight.shape[0]
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    if family != "m2_bert":
        with pytest.raises(ValueError, match=f"cannot be resized to {rows + 8}"):
            model.resize_token_embeddings(rows + 8)
        assert model.get_input_embeddings().weight.shape[0] == rows == model.lm_head.weight.shape[0]
        assert torch.equal(logits(model), before)
        return
    model.resize_token_embeddings(rows + 8)
    after = logits(model)
    assert after.shape[-1] == rows + 8 and torch.equal(after[..., :rows], before)
    model.save_pretrained(tmp_path / "more")
    assert torch.equal(logits(auto(family).from_pretrained(tmp_path / "more")), after)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing(family, plan, tmp_path):
    """The same gradients from fewer kept tensors."""
    model = auto(family).from_pretrained(saved(family, tmp_path, PLANS[plan])).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    twin, kept = copy.deepcopy(model), {}
    twin.gradient_checkpointing_enable()
    for name, one in (("plain", model), ("checkpointed", twin)):
        sizes, trunk = [], one.trunk if family != "m2_bert" else one.bert
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.nbytes), t)[1], lambda t: t
        ):
            trunk(ids())
        kept[name] = sum(sizes)
        one(ids(), labels=ids()).loss.backward()
    assert kept["checkpointed"] < kept["plain"] / 2
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad), name


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    """Trainer leaves the division by the number of items to models that take `num_items_in_batch`."""
    out, moved = saved("hyenadna", tmp_path, None), []
    for size, steps in ((4, 1), (2, 2)):
        model = AutoModelForCausalLM.from_pretrained(out)
        run = trainer(model, tmp_path / str(size), max_steps=1, gradient_accumulation_steps=steps, optim="sgd")
        run.args.per_device_train_batch_size = size
        run._train_batch_size = size
        run.train()
        moved.append(model)
    start = AutoModelForCausalLM.from_pretrained(out)
    for a, b, before in zip(moved[0].parameters(), moved[1].parameters(), start.parameters(), strict=True):
        if (a - before).norm() > 1e-4:
            assert relative_l2(a - before, b - before) < 1e-3


def test_sets_of_weights_by_torch_save_and_accelerate(tmp_path):
    from accelerate import Accelerator

    out = saved("hyenadna", tmp_path, 9)
    model = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    expected = logits(model)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.save(model, tmp_path / "model.pt")
    fresh = AutoModelForCausalLM.from_pretrained(out)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(logits(fresh), expected)
    assert torch.equal(logits(torch.load(tmp_path / "model.pt", weights_only=False)), expected)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(model)
    accelerator.save_state(str(tmp_path / "state"))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(logits(prepared), expected)


def test_distributed_state_dicts(tmp_path):
    """As FSDP and distributed checkpoints name things: by the modules' own places."""
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    out = saved("m2_bert", tmp_path, 9)
    model, other = (AutoModelForMaskedLM.from_pretrained(out) for _ in range(2))
    with torch.no_grad():
        model.cls.predictions.transform.dense.weight.mul_(2)
    set_model_state_dict(other, get_model_state_dict(model))
    assert torch.equal(logits(other), logits(model))


# --- DDP -------------------------------------------------------------------------------------------------------------

DDP = """
import os, sys, warnings
import torch, sparsify
from transformers import AutoModelForSequenceClassification
rank, out, to = int(os.environ["RANK"]), sys.argv[1], sys.argv[2]
torch.distributed.init_process_group("gloo")
model = AutoModelForSequenceClassification.from_pretrained(out).train()
for part in model.modules():
    if isinstance(part, torch.nn.Dropout):
        part.p = 0.0
wrapped = torch.nn.parallel.DistributedDataParallel(model)
ids = torch.load(to + "/ids.pt")[rank::2]
for _ in range(2):  # the second step is where a parameter that got no gradient would be missed
    wrapped.zero_grad()
    wrapped(ids, labels=torch.tensor([rank])).loss.backward()
if rank == 0:
    torch.save({name: w.grad for name, w in model.named_parameters()}, to + "/grads.pt")
torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("family", ["hyenadna", "m2_bert"])
def test_two_processes_of_ddp(family, plan, tmp_path):
    out = classifier(family, tmp_path, PLANS[plan])
    torch.save(ids(), tmp_path / "ids.pt")
    (tmp_path / "ddp.py").write_text(DDP)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    env["MASTER_PORT"] = str(29500 + os.getpid() % 400 + (family == "m2_bert") + 2 * (plan == "taps"))
    command = [sys.executable, str(tmp_path / "ddp.py"), str(out), str(tmp_path)]
    both = [subprocess.Popen(command, env={**env, "RANK": str(r)}, stderr=subprocess.PIPE, text=True) for r in (0, 1)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert all(process.returncode == 0 for process in both), said
    model = ForClasses.from_pretrained(out).train()
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    model(ids(), labels=torch.tensor([0, 1])).loss.backward()
    grads = torch.load(tmp_path / "grads.pt")
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (grads[name] is None) == (not weight.requires_grad), name
        if weight.grad is not None and weight.grad.norm() > 1e-7:
            assert relative_l2(grads[name], weight.grad.double()) < 1e-4, name


def classifier(family, folder, taps):
    """A converted classifier of two labels."""
    out = saved(family, folder, taps)
    ForClasses.from_pretrained(out, num_labels=2).save_pretrained(folder / "classifier")
    return folder / "classifier"


def test_a_classifier_on_a_converted_language_model_keeps_the_plan(tmp_path):
    folder = classifier("m2_bert", tmp_path, 9)
    assert read_config(folder)["quantization_config"]["plan"]["filters"]
    assert hyenadna is not None
