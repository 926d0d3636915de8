"""Texts that people hand in: files, pipes and standard input, gzipped or not, each read once and whole."""

from __future__ import annotations

import gzip
import os
import re
import stat
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
PACKED = {  # how files begin that hold others, or pack them -> what they are, and what takes them apart
    b"PK\x03\x04": ("a zip archive", "unzip"),
    b"\xfd7zXZ\x00": ("packed by xz", "unxz"),
    b"BZh": ("packed by bzip2", "bunzip2"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unzstd"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x"),
    b"\x43\x27\x41\x1a": ("a genome in 2bit", "twoBitToFa"),
    b"\x1a\x41\x27\x43": ("a genome in 2bit", "twoBitToFa"),
}
TAR = slice(257, 262)  # where a tar archive says ustar
TEXT_FILE = "a text or FASTA file"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")  # ORG/NAME
NAMED = 3  # of what is left out, how many are named with the reason


@dataclass(frozen=True)
class LeftOut:
    """What a file holds that cannot be used: how many rows or records, and why the first few."""

    count: int = 0
    reasons: tuple[str, ...] = ()  # of the first NAMED, each with its place

    @classmethod
    def of(cls, reasons: Sequence[str]) -> LeftOut:
        """All of these, the first few by name."""
        return cls(len(reasons), tuple(reasons[:NAMED]))

    def sentence(self, unit: str, source: str) -> str:
        """What to tell the user.  unit: what one of them is; source: where they lie, without folders."""
        shown = [*self.reasons, *([f"{self.count - NAMED:,} more"] if self.count > NAMED else [])]
        plural = "" if self.count == 1 else "s"
        return f"{self.count:,} {unit}{plural} of {source} left out: {'; '.join(shown)}"


NOTHING = LeftOut()


def readable(name: str | Path) -> str:
    """A file's name as text, for messages and results; bytes that are no UTF-8 as \\xe9."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # it is no file's name
        return str(name).encode("utf-8", "backslashreplace").decode()


def in_utf8(path: Path, what: str) -> Path:
    """`path`, unless its name is no UTF-8: weights are read and written by a library that takes no other."""
    if half_characters(str(path)):
        raise ValueError(f"{what} {readable(path)} has a name that is not UTF-8, and weights need one; rename it")
    return path


def given(src: str | Path, wanted: str) -> Path:
    """`src` as a path, unless it is empty, which would stand for the folder one is in.  wanted: what to pass."""
    if not str(src).strip():
        raise ValueError(f"got an empty name, as of a variable that is not set; pass {wanted}")
    return Path(src)


def label(src: str | Path) -> str:
    """How messages call it."""
    return "standard input" if str(src) == STDIN else readable(src)


def short_name(src: str | Path) -> str:
    """How results call it, which do not tell where folders lie."""
    return "a pipe" if is_stream(src) and str(src) != STDIN else Path(label(src)).name


def is_there(src: str | Path) -> bool:
    """Whether `src` can be read: a file, a pipe, or "-" for standard input; neither a folder nor another device."""
    if str(src) == STDIN:
        return True
    try:
        mode = os.stat(src).st_mode
    except OSError:
        return False
    return stat.S_ISREG(mode) or is_stream(src)


def is_stream(src: str | Path) -> bool:
    """Whether `src` gives its content once only: a pipe, or standard input."""
    if str(src) == STDIN:
        return True
    try:
        found = os.stat(src)
        return stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode) or is_terminal(found, src)
    except (OSError, ValueError):
        return False


def is_terminal(found: os.stat_result, src: str | Path) -> bool:
    """Whether this is /dev/stdin or the like where standard input is a terminal or /dev/null."""
    return stat.S_ISCHR(found.st_mode) and os.path.samestat(found, os.fstat(0)) and str(src).startswith("/dev/")


def refuse_twice(**sources: str | Path | None) -> None:
    """Refuse one pipe for two options.  sources: name of the option -> what was given, None for nothing."""
    given = {name: src for name, src in sources.items() if src is not None and is_stream(src)}
    seen: dict[object, str] = {}
    for name, src in given.items():
        try:
            found = os.fstat(0) if str(src) == STDIN else os.stat(src)
            identity: object = (found.st_dev, found.st_ino)
        except OSError:  # standard input is closed
            identity = STDIN
        if (first := seen.setdefault(identity, name)) != name:
            raise ValueError(
                f"--{first} and --{name} both read {label(src)}, which can be read only once; "
                f"pass a file for one of them"
            )


def read_bytes(src: str | Path, wanted: str = TEXT_FILE) -> bytes:
    """All of a file, of a pipe or, for "-", of standard input, unzipped where its first bytes say gzip.

    wanted: what to pass instead, for refusals.
    """
    name = label(src)
    if str(src) != STDIN and Path(src).is_dir():
        raise ValueError(f"{name} is a folder; pass {wanted}, gzipped or not")
    if not is_there(src):
        problem = f"{name} is a device" if Path(src).exists() else f"there is no file {name}"
        raise FileNotFoundError(f"{problem}; pass {wanted}, gzipped or not")
    data = standard_input() if str(src) == STDIN else Path(src).read_bytes()
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{name} is a damaged or truncated gzip file ({error}); fetch it again") from error
    refuse_packed(data, name, wanted)
    if not data.strip():
        once = "; a pipe can be read only once, so look whether its command failed" if is_stream(src) else ""
        raise ValueError(f"{name} is empty; pass a file with text in it{once}")
    return data


def refuse_packed(data: bytes, name: str, wanted: str) -> None:
    """Refuse the content of a file that has to be unpacked first; gzip alone is read as it is."""
    found = next((found for start, found in PACKED.items() if data.startswith(start)), None)
    if found is None and data[TAR] == b"ustar":
        found = "a tar archive", "tar -x"
    if found is not None:
        what, tool = found
        raise ValueError(f"{name} is {what}; unpack it ({tool}), and pass {wanted}, gzipped or not")


def standard_input() -> bytes:
    """What is left of standard input."""
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise ValueError("standard input is closed, so '-' has nothing to read; pass a file")
    data: bytes = stream.read()
    return data


def read_text(src: str | Path, wanted: str = TEXT_FILE) -> str:
    """The text of what `read_bytes` reads, which must be UTF-8; a byte order mark is no part of it."""
    return decoded(read_bytes(src, wanted), label(src), wanted)


def decoded(data: bytes, name: str, wanted: str = TEXT_FILE) -> str:
    """UTF-8 bytes as text.  name, wanted: for refusals, as of `read_bytes`."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{name} is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}; pass {wanted} in UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{name} is not text: NUL byte at {text.index(chr(0))}; pass {wanted}")
    return text


def lines(text: str) -> list[str]:
    """The lines of a text, which end with \\n or \\r\\n alone: U+2028, U+0085 and their like are data.

    A text without any \\n ends its lines with \\r, as files of old Macs do.
    """
    if "\n" not in text:
        text = text.replace("\r", "\n")
    found = [line.removesuffix("\r") for line in text.split("\n")]
    return found[:-1] if found[-1] == "" else found


def half_characters(text: str) -> str | None:
    """What is wrong with a text that no UTF-8 can hold, as the end of a sentence; None if nothing is.

    JSON can name half of a surrogate pair, and so can a command line that is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a character, U+{ord(text[error.start]):04X} at {error.start}"
    return None
