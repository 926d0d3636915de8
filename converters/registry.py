"""Which family a checkpoint belongs to, told by the names of its tensors: model_type is often missing or wrong.

A family is one file with these functions:
    matches(shapes) -> bool                              do these tensors look like mine?
    build(tensors, config, shift) -> (model, notes)      the module, filled; what the user should know
    sites(model) -> tuple[ConvSite, ...]                 its long convolutions
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

from .layout import listed

FAMILIES = {"hyenadna": "hyena_dna", "hyena_lm": "hyena_lm", "m2_bert": "m2_bert"}  # name -> module here
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
    for name, module in FAMILIES.items():
        family = importlib.import_module(f"{__package__}.{module}")
        if family.matches(shapes):
            return name, family
    known = f"known families: {', '.join(FAMILIES)}"
    for name, pattern in RECOGNISED.items():
        if any(re.search(pattern, key) for key in shapes):
            raise LookupError(f"this is a checkpoint of {name}, which is not supported yet; {known}")
    raise LookupError(f"no long convolution found among {len(shapes)} tensors ({listed(sorted(shapes))}); {known}")
