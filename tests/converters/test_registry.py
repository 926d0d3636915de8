"""The names of the tensors decide which family a checkpoint is; what is not supported is called by its name."""

import pytest

from sparsify.converters import registry

HYENA_LM = {
    "backbone.embeddings.word_embeddings.weight": (50264, 864),
    "backbone.layers.0.mixer.filter_fn.implicit_filter.0.weight": (64, 33),
}


@pytest.mark.parametrize(
    "prefix",
    [
        "", "hyena.", "model.", "module.model.", "_orig_mod.hyena.", "base_model.model.hyena.", "module._orig_mod.",
        "_forward_module.model._fsdp_wrapped_module.hyena.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrapper", ["", "layer."])
def test_hyenadna_under_every_prefix(prefix, wrapper):
    shapes = {
        f"{prefix}backbone.embeddings.word_embeddings.weight": (16, 128),
        f"{prefix}backbone.layers.0.mixer.{wrapper}filter_fn.implicit_filter.0.weight": (64, 5),
    }
    name, family = registry.find(shapes)
    assert name == "hyenadna" and family.__name__ == "sparsify.converters.hyena_dna"


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.", "_orig_mod.", "base_model.model."])
@pytest.mark.parametrize("trunk", ["bert.", ""])
def test_m2_bert_under_every_prefix(prefix, trunk):
    name, family = registry.find(
        {f"{prefix}{trunk}encoder.layer.0.attention.filter_fn.implicit_filter_rev.0.weight": ()}
    )
    assert name == "m2_bert" and family.__name__ == "sparsify.converters.m2_bert"


@pytest.mark.parametrize(
    ("names", "family"),
    [
        ("bert.encoder.layer.0.attention.filter_fn.implicit_filter.0.weight", "M2-BERT that looks one way only"),
        ("backbone.blocks.0.filter.poles", "StripedHyena 1 / Evo 1"),
        ("blocks.2.filter.log_poles blocks.1.filter.h", "StripedHyena 2 / Evo 2"),
        ("sequential.2.mixer.mixer.filter.p", "savanna"),
        ("backbone.layers.0.mixer.ssm_k_kernel.kernel.C", "H3"),
        ("model.encoder.layers.0.mixer.filter.implicit_filter.1.freq model.final_layer_norm.weight", "multimolecule"),
    ],
)
def test_known_but_not_supported(names, family):
    with pytest.raises(LookupError, match=rf"{family}.* not supported yet; known families: hyenadna"):
        registry.find(dict.fromkeys(names.split(), (8, 8)))


@pytest.mark.parametrize("prefix", ["", "hyena.", "model.", "module.model.", "_orig_mod."])
def test_hyena_lm_shares_the_names_but_not_the_vocabulary(prefix):
    name, family = registry.find({prefix + key: shape for key, shape in HYENA_LM.items()})
    assert name == "hyena_lm" and family.__name__ == "sparsify.converters.hyena_lm"
    for rows in (16, 32, 50257, 50304):
        changed = {key: (rows, 864) if "embeddings" in key else shape for key, shape in HYENA_LM.items()}
        assert registry.find(changed)[0] == "hyenadna"  # which says what it misses where it is none
    nowhere = {key: shape for key, shape in HYENA_LM.items() if "embeddings" not in key}
    assert registry.find(nowhere)[0] == "hyenadna"


@pytest.mark.parametrize(
    "names",
    [
        "backbone.layers.0.mixer.A_log backbone.layers.0.mixer.conv1d.weight",  # Mamba
        "model.layers.0.self_attn.q_proj.weight model.final_layer_norm.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
    ],
)
def test_models_without_a_long_convolution(names):
    with pytest.raises(LookupError, match=r"no long convolution found among \d tensors .*known families: hyenadna"):
        registry.find(dict.fromkeys(names.split(), (8, 8)))


def test_an_error_inside_a_family_stays_itself(monkeypatch):
    monkeypatch.setitem(registry.FAMILIES, "hyenadna", "no_such_file")
    with pytest.raises(ModuleNotFoundError, match="no_such_file"):
        registry.find(HYENA_LM)


@pytest.mark.parametrize("prefix", ["net.", "model.net.", "lit.encoder.hyena_model."])
def test_a_model_inside_another_module_is_named(prefix):
    shapes = {f"{prefix}hyena.{key}": shape for key, shape in HYENA_LM.items()}
    with pytest.raises(LookupError, match=f"tensors of a hyena_lm have '{prefix}' before their names.*save the state"):
        registry.find(shapes | {"classifier.weight": (2, 8)})


@pytest.mark.parametrize(
    "name",
    [
        "mixer.in_proj.lora_A.weight", "mixer.in_proj.lora_B.default.weight", "mixer.in_proj.base_layer.weight",
        "score.modules_to_save.default.weight", "mlp.fc1.lora_magnitude_vector.weight", "mlp.fc1.ia3_l",
        "mlp.hada_w1_a",
    ],
)  # fmt: skip
def test_adapters_that_are_not_merged_are_never_dropped(name):
    """Neither beside the whole model nor in a file of their own."""
    for others in (HYENA_LM, {}):
        with pytest.raises(ValueError, match=r"adapters of PEFT that are not merged: .*merge_and_unload\(\)"):
            registry.find({**others, f"base_model.model.backbone.layers.0.{name}": (4, 8)})
