"""What a compiled kernel takes, from ptxas and from its machine code; no GPU needed.

taken = compile_gate.taken(kernel, "sm_90a")
assert taken.spills == 0 and taken.local == 0 and taken.mmas == 64
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from shutil import which

import pytest

from sparsify import nvrtc


@dataclass(frozen=True)
class Taken:
    """What one entry takes.  Instructions are counted as they stand in the code, once each, loops or not."""

    registers: int  # a thread
    spills: int  # bytes stored and loaded because registers ran out
    stack: int  # bytes a thread
    shared: int  # static bytes a block
    opcodes: Counter[str]  # "HMMA" -> how many

    @property
    def mmas(self) -> int:
        return self.opcodes["HMMA"]

    @property
    def local(self) -> int:
        """Loads and stores of memory that should be registers: spills, or an array that is not indexed by constants."""
        return self.opcodes["LDL"] + self.opcodes["STL"]


_compiled: dict[str, nvrtc.Binary] = {}


def taken(kernel: nvrtc.Kernel, arch: str) -> Taken:
    """What a kernel takes when compiled for "sm_90a" or the like; skips the test where that cannot be told."""
    if reason := nvrtc.compile_why_not():
        pytest.skip(reason)
    name = nvrtc.key(kernel, arch)  # the same for all entries of a source
    if name not in _compiled:
        _compiled[name] = nvrtc.compile(kernel, arch)
    binary = _compiled[name]
    found = nvrtc.resources(binary.log).get(kernel.entry)
    assert found, f"ptxas says nothing of {kernel.entry}: {binary.log}"
    opcodes = Counter(instructions(binary.image, kernel.entry))
    return Taken(found.registers, found.spill_stores + found.spill_loads, found.stack, found.shared, opcodes)


INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", re.MULTILINE)


def instructions(image: bytes, entry: str) -> list[str]:
    """Opcodes of an entry in order, without what follows the first dot."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        code = subprocess.run([nvdisasm(), "-c", file.name], capture_output=True, text=True, check=True).stdout
    ours = [part for part in code.split(".section\t")[1:] if re.match(rf"\.text\.{entry}\W", part)]
    assert len(ours) == 1, f"{entry} stands {len(ours)} times in its own cubin"
    return INSTRUCTION.findall(ours[0])


@cache
def nvdisasm() -> str:
    """The disassembler, from its package or on PATH; skips the test without one."""
    try:
        for file in files("nvidia-cuda-nvdisasm") or []:
            if file.name in {"nvdisasm", "nvdisasm.exe"}:
                return str(Path(str(file.locate())))
    except PackageNotFoundError:
        pass
    found = which("nvdisasm")
    if not found:
        pytest.skip("no disassembler: pip install nvidia-cuda-nvdisasm")
    return found
