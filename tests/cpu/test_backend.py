"""What the CPU backend does to its process."""

import subprocess
import sys

import pytest
from helpers import ROOT

from sparsify.cpu import backend as cpu

FAULTS = """
import resource, sys, torch
from sparsify import cpu
if sys.argv[1] == "keep":
    cpu.keep_freed_memory()
for i in range(60):
    if i == 40:  # the heap has settled
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    """Page faults of twenty large tensors in a process of their own."""
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_freed_memory_is_used_again():
    usual, kept = faults("usual"), faults("keep")
    assert usual > 100  # even with huge pages
    assert kept < usual / 10


def test_elsewhere_it_says_so(monkeypatch):
    monkeypatch.setattr(cpu.ctypes, "CDLL", lambda name: object())
    assert cpu.keep_freed_memory() is False
