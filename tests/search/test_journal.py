"""Interrupted at any moment, a search goes on from where it was and finds the same."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import layouts_m2
import pytest
import torch
from click.testing import CliRunner
from helpers import ROOT
from layouts import tiny_model, write_tiny
from searches import data

from sparsify import swap
from sparsify.cli.main import main
from sparsify.evals import runs
from sparsify.evals.runs import Runs
from sparsify.filters.filter import Filter
from sparsify.search import journal, planner, sensitivity
from sparsify.search.journal import Journal, about
from sparsify.search.planner import divide, plan_within
from sparsify.search.sensitivity import Moments
from sparsify.search.task import Kept

VALUES = [0.1 + 0.2, 5e-324, float("inf"), {"kl": 1 / 3, "none": None}, "words"]


def opened(folder, what="a" * 64):
    found = Journal(folder)
    found.open(what)
    return found


def filled(folder):
    found = opened(folder)
    for i, value in enumerate(VALUES):
        assert found.recall({"n": str(i)}, lambda value=value: value) == value
    return found


def never():
    raise AssertionError("this was measured already")


def test_what_was_measured_is_recalled(tmp_path):
    filled(tmp_path / "new" / "folder")
    again = opened(tmp_path / "new" / "folder")
    assert [again.recall({"n": str(i)}, never) for i in range(len(VALUES))] == VALUES
    assert str(again) == f"{len(VALUES)} measurements kept in {tmp_path / 'new' / 'folder'}" and again
    with pytest.raises(AssertionError, match="measured already"):
        again.recall({"n": "another"}, never)
    first, *lines = again.lines.read_text().splitlines()
    assert json.loads(first) == {"about": "a" * 64} and len(lines) == len(VALUES)


def test_a_torn_line_is_not_there(tmp_path):
    """Wherever a kill or a power cut ends the file."""
    path = filled(tmp_path).lines
    whole = path.read_bytes()
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(0, len(whole), 3):
        path.write_bytes(whole[:size])
        some = opened(tmp_path)
        assert len(some.known) == max(0, sum(end <= size for end in ends) - 1), size
        some.recall({"n": "next"}, lambda: 7)
        again = opened(tmp_path)
        assert again.known == some.known and again.recall({"n": "next"}, never) == 7
    path.write_bytes(whole + b"\0" * 100)
    assert len(opened(tmp_path).known) == len(VALUES)


def test_another_model_finds_nothing_and_loses_nothing(tmp_path):
    filled(tmp_path)
    other = opened(tmp_path, "b" * 64)
    assert not other and other.others and str(other) == f"nothing kept in {tmp_path}"
    assert other.recall({"n": "0"}, lambda: 1) == 1
    other.remove()
    again = opened(tmp_path)
    assert again.recall({"n": "0"}, never) == VALUES[0] and not again.others
    again.remove()
    assert not tmp_path.exists()
    again.remove()  # what is not there


def test_what_numbers_depend_on():
    cpu = torch.device("cpu")
    tensors = {"w": torch.zeros(2), "k": torch.ones(3)}
    same = about({name: tensor.clone() for name, tensor in tensors.items()}, cpu)
    assert same == about(tensors, cpu)
    changes = ({"w": torch.tensor([0.0, 1e-30])}, {"w": torch.zeros(1, 2)}, {"w": torch.zeros(2).double()})
    assert len({same, about(tensors, torch.device("meta")), *(about(tensors | some, cpu) for some in changes)}) == 5


def moments(windows):
    return {name: Moments(torch.rand(2, 8), torch.rand(2), 7, windows) for name in ("layers.0", "layers.1/b")}


def test_moments_are_kept(tmp_path):
    found, some = opened(tmp_path), moments(3)
    found.keep("w", some, last=False)  # the last time was a moment ago
    assert found.moments("w") == {} and not found
    found.keep("w", some, last=True)
    again = opened(tmp_path)
    kept = again.moments("w")
    assert list(kept) == list(some) and again and "the moments of 3 windows kept" in str(again)
    for name, own in some.items():
        assert torch.equal(kept[name].power, own.power) and torch.equal(kept[name].gate, own.gate)
        assert (kept[name].seqlen, kept[name].windows) == (7, 3)
    assert again.moments("other") == {} and opened(tmp_path, "b" * 64).moments("w") == {}
    again.tensors.with_name(again.tensors.name + ".123.456").write_text("left by a kill")
    again.tensors.write_bytes(again.tensors.read_bytes()[:-5])
    assert opened(tmp_path).moments("w") == {}
    again.remove()
    assert not tmp_path.exists()


def test_moments_are_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    clock = iter(range(0, 10_000, 10))  # every look takes ten seconds, so every writing does
    monkeypatch.setattr(journal.time, "monotonic", lambda: next(clock))
    found, written = opened(tmp_path), []
    for windows in range(1, 60):
        found.keep("w", moments(windows), last=False)
        written += [found.windows] if found.windows == windows else []
    assert written[0] == 1 and {b - a for a, b in pairwise(written)} == {20}


@pytest.fixture
def short(monkeypatch):
    """A search of few candidates, in batches of a few windows, which keeps what it can."""
    monkeypatch.setattr(planner, "LEAK_GOAL", 1.0)  # so that one is measured
    monkeypatch.setattr(sensitivity, "TAPS", (4,))
    monkeypatch.setattr(sensitivity, "HEADS", (16, 32))
    monkeypatch.setattr(sensitivity, "SHARES", (1 / 4, 1 / 8))
    monkeypatch.setattr(runs, "TOKENS_A_BATCH", 64 * 8)
    monkeypatch.setattr(runs, "LEAK_WINDOWS", 1)
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal, "SHARE", 1e9)


@pytest.fixture
def tiny():
    model, sites = tiny_model()
    return model, sites, swap.Filters(sites)


def passes_of(model, monkeypatch, most=10**9):
    """Counts forward passes from now on, and stops at one too many as Ctrl-C does."""
    taken, forward = [], type(model).forward

    def counted(self, ids):
        if len(taken) == most:
            raise KeyboardInterrupt
        taken.append(len(ids))
        return forward(self, ids)

    monkeypatch.setattr(type(model), "forward", counted)
    return taken


def figures(found):
    return replace(found.search, passes=0).to_dict(), found.plan.to_dict()


def test_interrupted_again_and_again(tiny, short, tmp_path, monkeypatch):
    """After one forward pass, then after two more, and so on: inside every stage, the same plan and figures."""
    halves = divide(data())
    straight = plan_within(Runs(*tiny), *halves, 0.03, Kept())
    assert len(straight.search.steps) > 1 and any(step.leak > 0 for step in straight.search.steps)
    kept, taken = [], []
    for most in range(1, 100):
        with monkeypatch.context() as patch:
            taken.append(passes_of(tiny[0], patch, most))
            try:
                found = plan_within(Runs(*tiny, Journal(tmp_path)), *halves, 0.03, Kept())
                break
            except KeyboardInterrupt:
                kept += [line for path in tmp_path.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert figures(found) == figures(straight) and len(taken) > 5
    lost_too = sum(map(sum, taken))  # which is not counted
    assert lost_too > found.search.passes * 28 >= straight.search.passes * 28
    assert len({*kept}) == len({json.loads(line).get("key") for line in kept})  # nothing was measured twice


def test_masked_tokens_go_on_where_they_were(short, tmp_path, monkeypatch):
    """Of a model that looks both ways; other masks on the same text find nothing of it."""
    model, sites = layouts_m2.tiny_model()
    filters, halves = swap.Filters(sites), divide(layouts_m2.masked_windows(40))
    straight = plan_within(Runs(model, sites, filters), *halves, 0.03, Kept())
    hidden, most = type(model).hidden, itertools.count(1)
    taken = []

    def counted(self, ids, *rest):
        if not taken[-1]:
            raise KeyboardInterrupt
        taken[-1] -= 1
        return hidden(self, ids, *rest)

    monkeypatch.setattr(type(model), "hidden", counted)
    while True:
        taken.append(next(most))
        try:
            found = plan_within(Runs(model, sites, filters, Journal(tmp_path)), *halves, 0.03, Kept())
            break
        except KeyboardInterrupt:
            continue
    assert figures(found) == figures(straight) and len(taken) > 5
    names = {Runs(model, sites, filters).name(text) for text in (
        halves[0], halves[1], replace(halves[1], hidden=halves[1].hidden.roll(1, 1)),
        replace(halves[1], words=halves[1].words.clamp_max(20)))}  # fmt: skip
    assert len(names) == 4


def test_what_is_recalled_is_believed(tiny, short, tmp_path, monkeypatch):
    """And needs no forward pass: a search that was done is done again from its journal alone, whatever that says."""
    halves = divide(data())
    straight = plan_within(Runs(*tiny, Journal(tmp_path)), *halves, 0.03, Kept())
    (path,) = tmp_path.glob("*.jsonl")
    none = passes_of(tiny[0], monkeypatch, 0)
    again = plan_within(Runs(*tiny, Journal(tmp_path)), *halves, 0.03, Kept())
    assert again.search == straight.search and not none
    measured = repr(straight.search.chosen.increase + 1)
    assert measured in path.read_text()
    path.write_text(path.read_text().replace(measured, "1.00390625"))
    again = plan_within(Runs(*tiny, Journal(tmp_path)), *halves, 0.03, Kept())
    assert 0.00390625 in [step.increase for step in again.search.steps]


def test_another_budget_uses_the_same_probes(tiny, short, tmp_path, monkeypatch):
    halves = divide(data())
    alone = plan_within(Runs(*tiny), *halves, 0.003, Kept())
    plan_within(Runs(*tiny, Journal(tmp_path)), *halves, 0.03, Kept())
    lines = []
    taken = passes_of(tiny[0], monkeypatch)
    found = plan_within(Runs(*tiny, Journal(tmp_path), lines.append), *halves, 0.003, Kept())
    assert figures(found) == figures(alone) and sum(taken) < 0.6 * 28 * alone.search.passes
    assert lines[0].startswith("going on from ") and lines[0].endswith(f"28 windows kept in {tmp_path}")


def test_other_weights_find_nothing(tiny, short, tmp_path, monkeypatch):
    halves = divide(data())
    plan_within(Runs(*tiny, Journal(tmp_path)), *halves, 0.03, Kept())
    model, _, filters = tiny
    changed = {name: Filter(k.k.clone()) for name, k in filters.items()}
    next(iter(changed.values())).k[0, 0] += 1
    lines, taken = [], passes_of(model, monkeypatch)
    found = plan_within(Runs(*tiny[:2], changed, Journal(tmp_path), lines.append), *halves, 0.03, Kept())
    assert sum(taken) == 28 * found.search.passes
    assert lines[0] == f"{tmp_path} holds measurements of other weights or versions; they are left alone"


# --- as people meet it ---------------------------------------------------------------------------------------------


@pytest.fixture
def ask(tmp_path):
    """A command that searches; it takes OUT at the end."""
    path = tmp_path / "dna.txt"
    letters = torch.randint(4, (4000,), generator=torch.Generator().manual_seed(0))
    path.write_text("".join("ACGT"[i] for i in letters))
    source = write_tiny(tmp_path / "tiny")
    search = ["--max-ppl-increase", "5%", "--calibration", str(path), "--target", "kept"]
    return ["convert", *search, "--json", str(source)]


def planned(done):
    assert done.exit_code == 0, done.output
    return {**json.loads(done.stdout)["planned"], "passes": 0}


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
)
def test_a_signal_is_one_sentence(ask, tmp_path, monkeypatch, number, code, word):
    measure, calls, before = runs.Runs.versus, [], signal.getsignal(number)

    def stopped(self, *args):
        calls.append(args)
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        return measure(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(runs.Runs, "versus", stopped)
        done = CliRunner().invoke(main, [*ask, str(tmp_path / "out")])
    folder = tmp_path / ".out.planning"
    assert done.exit_code == code and not done.stdout and not (tmp_path / "out").exists()
    assert signal.getsignal(number) is before
    assert done.stderr.splitlines()[-1] == (
        f"{word}; the same command goes on from here (3 measurements and the moments of 43 windows kept in {folder})"
    )
    again = CliRunner().invoke(main, [*ask, str(tmp_path / "out")])
    assert f"going on from 3 measurements and the moments of 43 windows kept in {folder}" in again.stderr
    assert planned(again) and not folder.exists()


def test_ctrl_c_elsewhere_says_so(ask, monkeypatch):
    def stopped(*args, **where):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsify.pipeline.inspect.open_checkpoint", stopped)
    done = CliRunner().invoke(main, ["inspect", ask[-1]])
    assert (done.exit_code, done.stdout, done.stderr.split()) == (130, "", ["interrupted"])


@pytest.mark.parametrize("pages", [0, 1, 2, 3])
def test_a_full_disk_is_one_sentence(ask, tmp_path, small_disk, fill_up, monkeypatch, pages):
    """Wherever in the search it is found to be full, and after room was made it goes on to the same end."""
    monkeypatch.setattr(journal, "SECONDS", 0.0)
    monkeypatch.setattr(journal, "SHARE", 1e9)
    ballast, out, folder = fill_up(pages), small_disk / "out", small_disk / ".out.planning"
    done = CliRunner().invoke(main, [*ask, str(out)])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit) and not done.stdout
    *_, said = done.stderr.splitlines()
    assert " could not be written (No space left on device); free some space" in said
    assert f"Error: {folder}" in said and ("kept in" in said) == (pages > 1)
    assert {path.suffix for path in small_disk.rglob("*")} <= {"", ".planning", ".jsonl", ".safetensors"}
    ballast.unlink()
    again, alone = (CliRunner().invoke(main, [*ask, str(path)]) for path in (out, tmp_path / "alone"))
    assert ("going on from" in again.stderr) == (pages > 1)
    assert planned(again) == planned(alone) and [path.name for path in small_disk.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from sparsify.cli import main
from sparsify.search.journal import Journal
append = Journal.append
def killed(self, entry):
    if len(self.known) == 5:
        with self.lines.open("a") as file:
            file.write('{"key": "half a li')
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, entry)
Journal.append = killed
main(sys.argv[1:])
"""


def test_killed(ask, tmp_path):
    """A process that has no time to say anything; what it left and what another finds alone agree."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, *ask, str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        again, alone = (CliRunner().invoke(main, [*ask, str(tmp_path / name)]) for name in ("out", "alone"))
    finally:
        torch.set_num_threads(before)
    assert "going on from 5 measurements and the moments of 43 windows" in again.stderr
    assert planned(again) == planned(alone)
    assert (out / "plan.json").read_bytes() == (tmp_path / "alone" / "plan.json").read_bytes()
    assert not list(tmp_path.glob(".*"))
