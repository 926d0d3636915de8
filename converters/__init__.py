"""Checkpoints in and out: from a folder or the hub to a model with its convolution sites, and back to a folder."""

from .hub.download import Source, resolve
from .load import Pretrained, load
from .save import check_out, write_folder

__all__ = ["Pretrained", "Source", "check_out", "load", "resolve", "write_folder"]
