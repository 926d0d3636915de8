"""Which family a checkpoint belongs to, told by the names of its tensors: model_type is often missing or wrong.

A family is one file with these functions:
    matches(shapes) -> bool                              do these tensors look like mine?
    build(tensors, config, shift) -> (model, notes)      the module, filled; what the user should know
    sites(model, sizes=None) -> tuple[ConvSite, ...]     its long convolutions
    tokenizer(model, folder) -> tokenizer                text <-> ids; folder: where the checkpoint lies
    choices(sizes) -> dict                               what config.json must say so that it loads the same again
    rename(name) -> str | None                           our name for a stored tensor, None for what no model needs
and a model with the properties `context` (tokens of text it takes) and `head` ("lm", "mlm", "classifier", "encoder").
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import ModuleType

from .state_dict import listed

FAMILIES = {"hyenadna": "hyena_dna", "hyena_lm": "hyena_lm", "m2_bert": "m2_bert"}  # name -> module here
ADAPTER = re.compile(
    r"(?:^|\.)(?:lora_|hada_|lokr_|ia3_|vera_|boft_|oft_|prompt_embeddings|prompt_encoder|modules_to_save\.|base_layer\.|"
    r"original_module\.)"
)
DEEPEST = 4  # modules around a model that are looked through
Shapes = Mapping[str, tuple[int, ...]]

RECOGNISED = {  # known long convolutions that have no file here yet; the first match counts
    "M2-BERT that looks one way only": r"attention\.filter_fn2?\.implicit_filter",
    "HyenaDNA in another dialect, such as multimolecule's": r"filter.*\.freq$",
    "savanna's training layout of Evo 2": r"mixer\.mixer\.filter\.(p|gamma|decay)$",
    "StripedHyena 1 / Evo 1": r"blocks\.\d+\.filter\.poles$",
    "StripedHyena 2 / Evo 2": r"blocks\.\d+\.filter\.(log_poles|h)$",
    "H3": r"mixer\.(ssm_k_kernel\.kernel\.C|kernel\.kernel\.log_dt)$",
}


def find(shapes: Shapes) -> tuple[str, ModuleType]:
    """Name and module of the family whose tensors these are.  shapes: stored name -> shape."""
    refuse_adapters(shapes)
    families = {name: importlib.import_module(f"{__package__}.{module}") for name, module in FAMILIES.items()}
    for name, family in families.items():
        if family.matches(shapes):
            return name, family
    for prefix in outer_names(shapes):
        inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        if name := next((name for name, family in families.items() if family.matches(inner)), ""):
            raise LookupError(
                f"the tensors of a {name} have {prefix!r} before their names, as inside another module; save the "
                f"state_dict() of the module {prefix.removesuffix('.')!r} itself"
            )
    known = f"known families: {', '.join(FAMILIES)}"
    for name, pattern in RECOGNISED.items():
        if any(re.search(pattern, key) for key in shapes):
            raise LookupError(f"this is a checkpoint of {name}, which is not supported yet; {known}")
    raise LookupError(f"no long convolution found among {len(shapes)} tensors ({listed(sorted(shapes))}); {known}")


def outer_names(shapes: Shapes) -> list[str]:
    """What may stand before the names of a model that is a part of another module: "net." and the like."""
    filters = [key.split(".") for key in shapes if "implicit_filter" in key][:1]
    return [".".join(parts[:depth]) + "." for parts in filters for depth in range(1, min(DEEPEST, len(parts) - 1))]


def refuse_adapters(shapes: Shapes) -> None:
    """Refuse weights that are only complete together with what PEFT computes from its own beside them."""
    if adapters := sorted(key for key in shapes if ADAPTER.search(key)):
        raise ValueError(
            f"these are weights with adapters of PEFT that are not merged: {listed(adapters)}; merge them with "
            f"model.merge_and_unload(), and save what that returns"
        )
