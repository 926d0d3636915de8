"""Convolutions on NVIDIA GPUs: which kernel fits a card, how it is compiled and launched, and its tables."""
