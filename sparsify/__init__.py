"""Faster inference for pretrained long-convolution models, and proof of what it costs."""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "converters").is_dir():
    __path__.append(str(_root))  # source checkout: converters/, evals/ and cuda/ lie beside sparsify/

from .fftconv import LongConv, fftconv, fftconv_ref
from .sites import ConvSite

__all__ = ["ConvSite", "LongConv", "fftconv", "fftconv_ref"]
__version__ = "0.1.0"
