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

from sparsify.gpu import jit


@dataclass(frozen=True)
class Taken:
    """What one entry takes.  Instructions are counted as they stand in the code, once each, loops or not."""

    registers: int  # a thread
    spills: int  # bytes stored and loaded because registers ran out
    stack: int  # bytes a thread
    shared: int  # static bytes a block
    opcodes: Counter[str]  # "HMMA" -> how many
    accesses: Counter[str]  # of shared memory, "LDS.128" -> how many

    @property
    def mmas(self) -> int:
        return self.opcodes["HMMA"]

    @property
    def narrow(self) -> int:
        """Accesses to shared memory of fewer than 16 bytes a thread."""
        return sum(count for name, count in self.accesses.items() if "128" not in name.split("."))

    @property
    def local(self) -> int:
        """Loads and stores of memory that should be registers: spills, or an array that is not indexed by constants."""
        return self.opcodes["LDL"] + self.opcodes["STL"]


def taken(kernel: jit.Kernel, arch: str) -> Taken:
    """What a kernel takes when compiled for "sm_90a" or the like; skips the test where that cannot be told."""
    if reason := jit.compile_why_not():
        pytest.skip(reason)
    binary = jit.binary(kernel, arch)
    found = binary.resources
    assert found, f"ptxas says nothing of {kernel.entry}: {binary.log}"
    names = instructions(binary.image, kernel.entry)
    opcodes = Counter(name.split(".")[0] for name in names)
    accesses = Counter(name for name in names if name.startswith(("LDS", "STS")))
    return Taken(found.registers, found.spill_stores + found.spill_loads, found.stack, found.shared, opcodes, accesses)


INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


def instructions(image: bytes, entry: str) -> list[str]:
    """Instructions of an entry in order, without operands: "LDS.128"."""
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
