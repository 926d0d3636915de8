"""Convolutions, linear layers and norms on a CPU: compiled kernels where they are, torch elsewhere."""

from .backend import keep_freed_memory

__all__ = ["keep_freed_memory"]
