"""Which family a checkpoint belongs to, told by the names of its tensors: model_type is often missing or wrong.

What a family is, `family.Family` says.  `register` adds one of your own.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from .family import Family, Shapes
from .state_dict import listed

FAMILIES = {"hyenadna": "hyena_dna", "hyena_lm": "hyena_lm", "m2_bert": "m2_bert"}  # name -> module here
ADAPTER = re.compile(
    r"(?:^|\.)(?:lora_|hada_|lokr_|ia3_|vera_|boft_|oft_|prompt_embeddings|prompt_encoder|modules_to_save\.|base_layer\.|"
    r"original_module\.)"
)
DEEPEST = 4  # modules around a model that are looked through
ADDED: dict[str, Family] = {}  # by `register`

RECOGNISED = {  # known long convolutions that have no file here yet; the first match counts
    "M2-BERT that looks one way only": r"attention\.filter_fn2?\.implicit_filter",
    "HyenaDNA in another dialect, such as multimolecule's": r"filter.*\.freq$",
    "savanna's training layout of Evo 2": r"mixer\.mixer\.filter\.(p|gamma|decay)$",
    "StripedHyena 1 / Evo 1": r"blocks\.\d+\.filter\.poles$",
    "StripedHyena 2 / Evo 2": r"blocks\.\d+\.filter\.(log_poles|h)$",
    "H3": r"mixer\.(ssm_k_kernel\.kernel\.C|kernel\.kernel\.log_dt)$",
}


def register(name: str, family: Family) -> None:
    """Let `load` and all that builds on it know a family of your own.

    Args:
        name: What its config.json calls it (`model_type`), and reports, too.
        family: A module, or an object, with the functions of `Family`.

    Raises:
        ValueError: If the name is taken, or something of the contract is missing.
    """
    wanted = [part for part in vars(Family) if not part.startswith("_")] + ["OPTIONS"]
    if missing := sorted(part for part in wanted if not hasattr(family, part)):
        raise ValueError(f"the family {name} lacks {', '.join(missing)}; see sparsify.converters.family.Family")
    if name in FAMILIES or ADDED.get(name, family) is not family:
        raise ValueError(f"there is a family {name} already; choose another name")
    ADDED[name] = family


def families() -> dict[str, Family]:
    """Every family by name, those of this package first."""
    own: dict[str, Any] = {
        name: importlib.import_module(f"{__package__}.{module}") for name, module in FAMILIES.items()
    }
    return own | ADDED


def find(shapes: Shapes) -> tuple[str, Family]:
    """Name and module of the family whose tensors these are.  shapes: stored name -> shape."""
    refuse_adapters(shapes)
    known_families = families()
    for name, family in known_families.items():
        if family.matches(shapes):
            return name, family
    for prefix in outer_names(shapes):
        inner = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        if name := next((name for name, family in known_families.items() if family.matches(inner)), ""):
            raise LookupError(
                f"the tensors of a {name} have {prefix!r} before their names, as inside another module; save the "
                f"state_dict() of the module {prefix.removesuffix('.')!r} itself"
            )
    known = f"known families: {', '.join(known_families)}"
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
