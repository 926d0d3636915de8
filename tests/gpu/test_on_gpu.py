"""One call on a machine with a GPU: whatever a step does, the others have their turn, and what was found is told."""

import ctypes
import itertools
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import emulation
import pytest
import torch
from helpers import ROOT

from sparsify.evals.speed import baselines, gpu_convolution, gpu_machine
from sparsify.evals.speed.gpu_convolution import Case
from sparsify.gpu import tuning_cache
from sparsify.gpu.devices import CARDS

sys.path.append(str(ROOT / "tools"))
import on_gpu


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Steps that are Python programs: NAME=program."""

    def choose(**programs):
        def command(name, out, seconds):
            return [sys.executable, "-c", programs[name], str(out)]

        monkeypatch.setattr(on_gpu, "command", command)
        monkeypatch.setattr(on_gpu, "LIMITS", dict.fromkeys(programs, 1.0))
        return on_gpu.everything(tmp_path, 1.0, list(programs))

    return choose


# --- processes with a limit ------------------------------------------------------------------------------------------


def test_a_step_that_fails_or_hangs_does_not_stop_the_rest(commands, tmp_path):
    hangs = "import os, time\nif not os.fork(): print('child', os.getpid(), flush=True)\ntime.sleep(60)"
    report = commands(
        versions="print('first')", sweep=hangs, tests="import sys; print('because'); sys.exit(3)",
        profile="import os; os.abort()", tune="print('last')",
    )  # fmt: skip
    assert report.pop("profile").startswith("failed (-6)")
    assert report == {"versions": "done", "sweep": "out of time", "tests": "failed (3): because", "tune": "done"}
    log = (tmp_path / "log.txt").read_text()
    assert "\nfirst\n" in log and "\nlast\n" in log and "sys.exit(3)" in (tmp_path / "tests.txt").read_text()
    child = int(log.split("child ")[-1].split()[0])
    for _ in range(100):  # a child of nobody, until somebody has looked after it
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(child, 9)
    raise AssertionError("what a step started lives on")


def test_nothing_is_begun_when_time_is_up(tmp_path):
    assert on_gpu.everything(tmp_path, 0.05, ["bench", "tune"]) == dict.fromkeys(["bench", "tune"], "no time left")


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "command", lambda *_: ["no-such-profiler"])
    assert "no-such-profiler" in on_gpu.everything(tmp_path, 1.0, ["profile"])["profile"]


def test_the_benchmark_goes_on_behind_a_case_that_hangs_or_dies(tmp_path, monkeypatch):
    """The first process hangs, the second dies, the third comes to an end."""
    program = """
import json, os, pathlib, sys, time
state = pathlib.Path(sys.argv[1], "bench.json")
times = json.loads(state.read_text()) + 1 if state.exists() else 1
state.write_text(json.dumps(times))
time.sleep(60 * (times == 1))
sys.exit(times == 2)
"""
    monkeypatch.setattr(on_gpu, "command", lambda name, out, seconds: [sys.executable, "-c", program, str(out)])
    monkeypatch.setattr(on_gpu, "STALL", 0.5)
    (tmp_path / "bench.json").write_text("7")  # of an earlier day
    assert on_gpu.step("bench", tmp_path, 30.0) == "done"
    assert json.loads((tmp_path / "bench.json").read_text()) == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["versions", "tune"])
def test_steps_say_that_there_is_no_gpu(tmp_path, name):
    assert on_gpu.main([str(tmp_path), "--steps", name]) == 1
    said = (tmp_path / "log.txt").read_text()
    assert "our kernels do not run here: torch" in said or "no GPU to time kernels on: torch" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["compile", "sweep", "bench", "profile"])
def test_steps_raise_before_they_do_anything(tmp_path, name):
    with pytest.raises(RuntimeError, match="no GPU to time kernels on"):
        on_gpu.main([str(tmp_path), "--inside", name])
    assert not list(tmp_path.iterdir())


def test_no_call_goes_by_what_another_tuned(monkeypatch):
    """All steps of one call see one folder, which is no other call's."""
    folders = []
    for pid in (1, 1, 2):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        folders.append(on_gpu.environment()["XDG_CACHE_HOME"])
    assert folders[0] == folders[1] != folders[2]


def test_strange_steps_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        on_gpu.main([str(tmp_path / "out"), "--steps", "versions,cook"])
    assert "no step cook" in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- errors of every way ---------------------------------------------------------------------------------------------


def machine(launch):
    card = replace(CARDS["sm_90"], l2=1)
    return gpu_machine.Machine(torch.device("cpu"), card, "sm_90a", time.perf_counter, None, launch)


def test_ways_of_every_kind_are_swept(monkeypatch):
    plans = gpu_convolution.plans
    long = ("dense", "partial 1/16")
    some = {1 << 17: long, 4096: ("low-pass 1/8", "comb 1/8"), 1023: ("partial 64",)}
    monkeypatch.setattr(gpu_convolution, "plans", lambda n: {name: plans(n)[name] for name in some[n]})
    entries = list(on_gpu.sweep_entries(machine(None), list(some)))
    ways = {on_gpu.way_name(choice) for *_, choice in entries}
    assert ways >= {"direct", "plain", "plain real", "plain history", "plain complex", "masked real", "decimated"}
    assert {case.dtype for case, *_ in entries} == set(gpu_convolution.DTYPES)
    assert {case.gated for case, *_ in entries} == {True, False}
    told = [(case, name, on_gpu.way_name(choice)) for case, name, _, choice in entries]
    assert len(told) == len(set(told))


def test_wrong_ways_and_races_are_told_of(tmp_path):
    """A way is computed three times, once for its error and twice for a race; a wrong one once."""
    case = Case((1, 2, 256), "float16")
    kept = gpu_convolution.plans(256)["dense"].apply(torch.zeros(1, 256))
    emulator, launched = emulation.Emulator(), itertools.count()

    def launch(build, grid, call):
        if next(launched) in (3, 6):
            ctypes.memset(call.y.memory, 0, 2 * 256 * 2)
        else:
            emulator(build, grid, call)

    path = tmp_path / "sweep.json"
    rows = on_gpu.swept(machine(launch), path, iter([(case, "dense", kept, tuning_cache.Choice("direct"))] * 3))
    right, wrong, race = rows
    assert 0 < right["error"] < gpu_convolution.BARS["float16"] and "failed" not in right and right["way"] == "direct"
    assert "off by 1.0e+00" in wrong["failed"] and "a race" in race["failed"]
    assert json.loads(path.read_text()) == rows


# --- what is told ----------------------------------------------------------------------------------------------------


def test_every_rival_has_a_column():
    assert on_gpu.SHORT.keys() == baselines.RIVALS.keys()


def test_a_summary_of_nothing(tmp_path):
    assert on_gpu.summary(tmp_path, {"versions": "failed (1)"}).split() == ["versions", "failed", "(1)"]


def test_the_summary_has_the_key_figures_and_stays_short(tmp_path):
    """All cases, all contenders, and reasons of any length."""
    others = {name: {"median": 3.25, "low": 3.0, "high": 3.5} for name in baselines.RIVALS}
    sparse = {"dense": {"median": 1.75, "low": 1.5, "high": 2.0}}

    def way(name, of=others):
        return {
            "name": name,
            "ours": name not in others,
            "seconds": 1.234e-4,
            "of_floor": 0.61,
            "predicted_seconds": 9.87e-5,
            "faster_than": of,
        }

    names = [name for name in gpu_convolution.plans(4096) if name != "dense"]
    cases = [
        {
            "case": case.name,
            "ways": [way("dense"), *(way(name, sparse) for name in names)],
            "failed": [{"name": "cuDNN", "reason": f"{case.name} " + "no " * 200}],
        }
        for case in gpu_convolution.cases()
    ]
    cases.append({"case": "last", "ways": [], "failed": []})
    peak = {"bytes_per_second": 4.2e12, "flop_per_second": 7.9e14}
    bench = {"card": {"name": "Card"}, "ceilings": peak, "cases": cases, "crashed": ["a case"]}
    rows = [{"case": "c", "dtype": "float16", "plan": "p", "way": "plain real", "error": 1e-4 * i} for i in range(9)]
    rows += [{**rows[0], "failed": "off by " + "1" * 500}] * 99
    for name, data in (("bench", bench), ("sweep", rows), ("tuned", [{"faster_than_planned": 1.5}] * 3)):
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    (tmp_path / "tests.txt").write_text("FAILED tests/a.py::b - " + "x" * 300 + "\n1 failed, 99 passed in 3s\n")
    (tmp_path / "ncu.txt").write_text("  conv (1, 1)\n    Duration   us  12.3\n    Something else\n")
    text = on_gpu.summary(tmp_path, {name: "done" for name in on_gpu.LIMITS})
    assert len(text) == on_gpu.LETTERS and "64 x 768 x 256 float16: cuDNN: 64" in text  # reasons have what is left
    for told in (
        "1 failed, 99 passed", "FAILED tests/a.py::b", "108 ways, 99 failed", "plain real       float16   8.0e-04",
        "copy 4.20 TB/s", "float16 gated", "123.4   61%    98.7", "3.25", "1.75", "last", "no dense",
        "ended the process: a case", "tuned 3 cases", "median 1.50x", "Duration   us  12.3",
    ):  # fmt: skip
        assert told in text, told
    assert "Something else" not in text
