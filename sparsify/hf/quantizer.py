"""`quantization_config` of a saved model, as transformers' own way to models that are not as their code has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sparsify.converters.load import FORMAT, QUANT_METHOD, entry_plan, saved_plan
from sparsify.plan import Plan, has_coefficients


class SparsifyConfig(QuantizationConfigMixin):
    """What config.json says under `quantization_config`, see docs/format.md.

    plan: a Plan, or the same as JSON has it.  Pass one to `from_pretrained` to put a dense model under it.  Re-fitted
    coefficients lie in a file of their own, so such a plan comes with its folder.
    """

    def __init__(self, plan: Plan | Mapping[str, Any] | None = None, **entry: Any) -> None:
        self.quant_method: Any = QUANT_METHOD
        self.format_version = entry.pop("format_version", FORMAT)
        self.plan = plan.to_dict() if isinstance(plan, Plan) else plan
        if isinstance(plan, Plan) and has_coefficients(plan.to_dict()):
            raise ValueError("a plan with re-fitted coefficients loads from the folder it was saved in; pass that")
        for name, value in entry.items():
            if name != "quant_method":
                setattr(self, name, value)
        if not has_coefficients(entry_plan(vars(self))):
            Plan.from_dict(entry_plan(vars(self)))  # refuses what is no plan


class SparsifyQuantizer(HfQuantizer):
    """Puts the planned convolutions into a model once its weights are there."""

    quantization_config: SparsifyConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from . import foreign

        if not hasattr(model, "prepare_convolutions"):
            foreign.keep_filters_exact(model)
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from . import foreign

        if not hasattr(model, "prepare_convolutions"):  # models of ours do it themselves when they turn to eval mode
            entry = vars(self.quantization_config)
            folder = came_from(model) if has_coefficients(entry_plan(entry)) else None
            foreign.install(model, saved_plan(entry, folder or Path()), folder)
        model.is_quantized = False  # else .half() and .float() refuse, and there is no reason to
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False  # planned filters are fixed, so their weights would not learn


def came_from(model: Any) -> Path:
    """The folder that a model was loaded from."""
    from .base import fetch

    commit = getattr(model.config, "_commit_hash", None)
    return fetch(model.config.name_or_path, {"revision": commit} if commit else {})


AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = SparsifyConfig  # not by decorator: that refuses a second time
AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = SparsifyQuantizer
