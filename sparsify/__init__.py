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
from .sites import ConvSite

if _TYPE_CHECKING:
    from .converters.load import load

__all__ = ["ConvSite", "LongConv", "fftconv", "fftconv_ref", "load"]
__version__ = "0.1.0"
_LATER = {"load": "sparsify.converters"}  # imported when asked for: names here -> where they are

_hf.watch()  # AutoModel and its kin know our models from now on


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module 'sparsify' has no attribute {name!r}")
    return getattr(_importlib.import_module(_LATER[name]), name)
