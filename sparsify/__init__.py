"""Faster inference for pretrained long-convolution models, and proof of what it costs."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "converters").is_dir():
    __path__.append(str(_root))  # source checkout: converters/, evals/ and cuda/ lie beside sparsify/

from . import process as _process

_process.guard()  # before torch is imported, which takes seconds

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import hf as _hf
from .fftconv import LongConv, fftconv, fftconv_ref
from .filters.filter import Filter
from .sites import ConvSite

if _TYPE_CHECKING:
    from .converters.load import load
    from .pipeline.apply import sparsify_
    from .pipeline.bench import bench
    from .pipeline.convert import convert
    from .pipeline.evaluate import evaluate
    from .pipeline.finetune import finetune
    from .pipeline.generate import generate
    from .pipeline.inspect import analyze, inspect
    from .pipeline.push import push

__all__ = [
    "ConvSite",
    "Filter",
    "LongConv",
    "analyze",
    "bench",
    "convert",
    "evaluate",
    "fftconv",
    "fftconv_ref",
    "finetune",
    "generate",
    "inspect",
    "load",
    "push",
    "sparsify_",
]
__version__ = "0.1.0"
_LATER = {  # imported when asked for: names here -> where they are
    "load": "sparsify.converters",
    "analyze": "sparsify.pipeline.inspect",
    "bench": "sparsify.pipeline.bench",
    "convert": "sparsify.pipeline.convert",
    "evaluate": "sparsify.pipeline.evaluate",
    "finetune": "sparsify.pipeline.finetune",
    "generate": "sparsify.pipeline.generate",
    "inspect": "sparsify.pipeline.inspect",
    "push": "sparsify.pipeline.push",
    "sparsify_": "sparsify.pipeline.apply",
}

_hf.watch()  # AutoModel and its kin know our models from now on


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module 'sparsify' has no attribute {name!r}")
    return getattr(_importlib.import_module(_LATER[name]), name)
