"""Checkpoints in and out: from a folder or the hub to a model with its convolution sites, and back to a folder."""

from .folder import check_out, write_folder
from .load import Pretrained, load
from .source import Source, resolve

__all__ = ["Pretrained", "Source", "check_out", "load", "resolve", "write_folder"]
