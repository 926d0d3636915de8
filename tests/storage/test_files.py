"""Files and folders that are whole and on the disk, or not there; devices and pipes are written through."""

import errno
import os
import re
import stat
import subprocess
import threading
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from power_cut import laid_out, power_cuts

from sparsify.search import journal
from sparsify.search.sensitivity import Moments
from sparsify.storage.files import flush, readable_size, whole, write_whole
from sparsify.storage.folders import heal, whole_folder
from sparsify.storage.tensors import read_safetensors, write_safetensors

linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's /proc")


@pytest.mark.parametrize("content", ["neu\n", b"\x00\xff"])
def test_what_was_there_is_replaced(tmp_path, content):
    path = tmp_path / "new" / "folder" / "file.json"
    write_whole(path, "before, and longer")
    write_whole(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert list(path.parent.iterdir()) == [path]


def test_nothing_is_left_of_a_failure(tmp_path):
    path = tmp_path / "file"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory") as raised:
        write_whole(path, "lost")
    assert raised.value.filename == str(path) and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("target", [True, False])
def test_behind_a_link_the_file_it_leads_to_is_replaced(tmp_path, target):
    (tmp_path / "there").mkdir()
    if target:
        (tmp_path / "there" / "file").write_text("before")
    (tmp_path / "link").symlink_to(Path("there") / "file")
    write_whole(tmp_path / "link", "after")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "file").read_text() == "after"
    assert len(list((tmp_path / "there").iterdir())) == 1


# --- power cuts ----------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_power_cut_leaves_an_old_file_or_all_of_a_new_one(tmp_path, before):
    root = tmp_path / "root"
    (root / "beside").mkdir(parents=True)
    (root / "journal").write_bytes(b"what the new file makes superfluous")
    path = Path("new", "folder", "file") if before is None else Path("beside", "file")
    if before:
        (root / path).write_bytes(before)

    def work():
        write_whole(root / path, b"new")
        os.unlink(root / "journal")
        flush(root)  # of all that was done this may come first

    left = []
    for found in laid_out(power_cuts(root, work), tmp_path / "cuts"):
        content = (found / path).read_bytes() if (found / path).exists() else None
        left.append(content)
        assert content in (before, b"new")
        assert content == b"new" or (found / "journal").read_bytes()
    assert before in left and b"new" in left


@linux
@pytest.mark.parametrize("before", [False, True])
def test_a_power_cut_leaves_an_old_folder_or_all_of_a_new_one(tmp_path, before):
    """Once the next run has put right what was half done."""
    root, old, new = tmp_path / "root", {"a": b"old", "c": b"old"}, {"a": b"new", "b/deep": b"new"}
    root.mkdir()
    (root / "journal").write_bytes(b"what the new folder makes superfluous")
    out = root / "models" / "out"
    if before:
        out.mkdir(parents=True)
        for name, content in old.items():
            (out / name).write_bytes(content)

    def work():
        with whole_folder(out) as folder:
            (folder / "b").mkdir()
            for name, content in new.items():
                (folder / name).write_bytes(content)
        os.unlink(root / "journal")
        flush(root)  # of all that was done this may come first

    left = []
    for found in laid_out(power_cuts(root, work), tmp_path / "cuts"):
        (found / "models").mkdir(exist_ok=True)
        heal(found / "models" / "out")
        there = found / "models" / "out"
        files = {p.relative_to(there).as_posix(): p.read_bytes() for p in there.rglob("*") if p.is_file()}
        left.append(files)
        assert files in (old if before else {}, new)
        assert files == new or (found / "journal").read_bytes()
        assert [p.name for p in (found / "models").iterdir()] in ([], ["out"])
    assert (old if before else {}) in left and new in left


def test_two_at_once_lose_nothing(tmp_path, monkeypatch):
    """Whoever finds that another one was quicker says so, and leaves what that one wrote."""
    out, rename = tmp_path / "out", Path.rename
    (out / "old").mkdir(parents=True)

    def quicker(self, target):
        done = rename(self, target)
        if self == out:
            (out / "theirs").mkdir(parents=True)
        return done

    with (
        pytest.raises(OSError, match=r"another process wrote .*out in the meantime"),
        whole_folder(out) as new,
    ):
        (new / "ours").mkdir()
        monkeypatch.setattr(Path, "rename", quicker)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "theirs"]


# --- what is no file -----------------------------------------------------------------------------------------------


@linux
def test_a_device_is_written_through(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.stat("/dev/full").st_rdev)
        device.open("rb").close()
    except PermissionError:
        pytest.skip("only root may make a device")
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(device, "x" * 100)
    assert raised.value.filename == str(device) and stat.S_ISCHR(device.stat().st_mode)
    assert list(tmp_path.iterdir()) == [device]


@linux
def test_a_pipe_is_written_through(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    for tensors in (False, True):
        reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
        reader.start()
        if tensors:
            with whole(pipe) as beside:
                write_safetensors(beside, {"w": torch.ones(3)}, {})
        else:
            write_whole(pipe, "through")
        reader.join()
    assert stat.S_ISFIFO(pipe.stat().st_mode) and list(tmp_path.iterdir()) == [pipe] and read[0] == b"through"
    (tmp_path / "w.safetensors").write_bytes(read[1])
    assert read_safetensors(tmp_path / "w.safetensors")["w"].tolist() == [1, 1, 1]


@linux
@pytest.mark.parametrize("place", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_added_to_where_it_is_a_file(tmp_path, python, place):
    """Opened anew it would be cut to nothing; replaced, what is printed afterwards would go into no file."""
    code = f"""
from pathlib import Path
from sparsify.storage.files import write_whole
print("before")
write_whole(Path({place!r}), "through\\n")
print("after")
"""
    with (tmp_path / "out").open("w") as out:
        subprocess.run([*python, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nthrough\nafter\n"


# --- full disks ----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_told_with_the_name_that_was_asked_for(small_disk):
    (small_disk / "file").write_text("before")
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(small_disk / "file", bytes(1 << 21))
    assert raised.value.filename == str(small_disk / "file")
    with pytest.raises(OSError, match="No space left") as raised, whole(small_disk / "w.safetensors") as beside:
        write_safetensors(beside, {"w": torch.zeros(1 << 19)}, {})
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(small_disk / "w.safetensors"))
    (small_disk / "source").write_bytes(bytes(600_000))
    with pytest.raises(OSError, match="No space left") as raised, whole_folder(small_disk / "out") as new:
        (new / "copy").write_bytes((small_disk / "source").read_bytes())
    assert raised.value.filename == str(small_disk / "out")
    assert sorted(p.name for p in small_disk.iterdir()) == ["file", "source"]
    assert (small_disk / "file").read_text() == "before"


def test_all_that_is_written_goes_these_ways():
    """So that a full disk is an OSError everywhere, and what is renamed is on the disk."""
    sources = [path for folder in ("sparsify", "converters", "evals") for path in (ROOT / folder).rglob("*.py")]
    writers = {
        call: {path.name for path in sources if re.search(call, path.read_text(encoding="utf-8"))}
        for call in (r"\bsave_file\(", r"(?<!family)\.rename\(|os\.replace|beside\.replace\(")
    }
    # a compiled library that is damaged is not loaded, but compiled again
    assert list(writers.values()) == [{"tensors.py"}, {"files.py", "folders.py", "build.py"}]


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.00 kB"), (4096, "4.10 kB"), (12_345_678, "12.3 MB"),
     (433_000_000, "433 MB"), (1_500_000_000, "1.50 GB"), (2.5e13, "25.0 TB"), (7e15, "7,000 TB")],
)  # fmt: skip
def test_sizes_as_people_say_them(count, said):
    assert readable_size(count) == said


@pytest.mark.parametrize("what", ["line", "moments"])
def test_a_full_disk_leaves_no_empty_journal(tmp_path, monkeypatch, what):
    """Neither where a line of it nor where its moments are the first thing that is kept."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal.json, "dumps", full)  # which is asked for between making the file and writing to it
    monkeypatch.setattr(journal, "write_safetensors", full)
    kept = journal.Journal(tmp_path / "kept")
    kept.about = "a" * 64
    one = Moments(torch.ones(1, 1), torch.ones(1), 1, 1)
    with pytest.raises(OSError, match="No space left") as raised:
        kept.append({"a": 1}) if what == "line" else kept.keep("a", {"site": one}, last=True)
    assert raised.value.filename == str(kept.lines if what == "line" else kept.tensors)
    assert not (tmp_path / "kept").exists()
