"""The verbs as plain functions: no click, no terminal, and the very dictionaries that the command line prints."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from helpers import ROOT
from layouts import write_tiny
from verbs import answer

import sparsify
from sparsify.converters import load
from sparsify.pipeline import progress
from sparsify.pipeline.evaluate import KINDS, evaluate
from sparsify.pipeline.inspect import doctor
from sparsify.pipeline.progress import Event, session

DEMO, HELD_OUT = ROOT / "demo" / "hyenadna-chr20-8k", ROOT / "demo" / "chr20-held-out.fa.gz"
FEW = {"context": 256, "limit": 4, "upper": True}
A_SCRIPT = f"""
import json, sys
import sparsify
few, told = {FEW!r}, []
done = sparsify.convert({str(DEMO)!r}, sys.argv[1], taps=256, data={str(HELD_OUT)!r}, progress=told.append, **few)
found = sparsify.evaluate(sys.argv[1], data={str(HELD_OUT)!r}, progress=told.append, **few)
with open(sys.argv[2], "w") as file:
    json.dump([done.to_dict(), found.to_dict(), sorted({{event.kind for event in told}})], file)
assert "click" not in sys.modules and "rich" not in sys.modules
"""
TIMES = ("second", "speed", "parts", "published_time", "date")  # what keys of times have in their names


def without_times(found):
    """JSON data without what is another number whenever it is measured."""
    if isinstance(found, dict):
        return {
            key: without_times(value)
            for key, value in found.items()
            if key != "time" and not any(word in key for word in TIMES)
        }
    return [without_times(value) for value in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "genome.fa"
    path.write_text(">chr1\n" + "ACGTTGCAAC" * 80 + "\n>nothing\n>chr2\n" + "GATTACA" * 80 + "\n")
    return path


def test_ten_lines_of_python_and_the_command_line_agree(tmp_path):
    """In a fresh interpreter, where nobody has imported what parses and prints."""
    out, found = tmp_path / "out", tmp_path / "found.json"
    command = [sys.executable, "-c", A_SCRIPT, str(out), str(found)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    converted, evaluated, kinds = json.loads(found.read_text())
    assert kinds == ["advance", "end", "say", "start"]
    assert json.loads((out / "report.json").read_text())["filters"] == converted["filters"]
    few = ("--context", 256, "--limit", 4, "--upper", "--data", HELD_OUT)
    assert without_times(answer("eval", "ppl", out, *few)) == without_times(evaluated)
    again = answer("convert", DEMO, out, "--taps", 256, "--force", *few)
    assert without_times(again) == without_times(converted) and again["evaluation"]["speed"]


@pytest.mark.parametrize(
    ("verb", "options", "argv"),
    [
        ("inspect", {"length": 20}, ("inspect", "--length", 20)),
        ("analyze", {"length": 20}, ("analyze", "--length", 20)),
        ("generate", {"prompt": "ACGT", "count": 5}, ("generate", "--prompt", "ACGT", "--count", 5)),
        ("bench", {"length": 20, "rounds": 3}, ("bench", "--length", 20, "--rounds", 3)),
    ],
)
def test_every_verb_agrees_with_the_command_line(checkpoint, capfd, verb, options, argv):
    """And tells nothing where nobody listens."""
    found = getattr(sparsify, verb)(str(checkpoint), **options)
    assert capfd.readouterr() == ("", "")
    said = answer(argv[0], checkpoint, *argv[1:])
    assert without_times(found.to_dict()) == without_times(said) and found.to_dict().keys() == said.keys()


def test_the_doctor_agrees_too():
    assert doctor().to_dict().keys() == answer("doctor").keys()


def test_all_that_is_promised_is_there():
    for name in sparsify.__all__:
        assert callable(getattr(sparsify, name)), name
    assert set(KINDS) == {"ppl", "front", "glue", "mlm", "retrieval"}


def test_a_result_stays_what_it_is():
    found = doctor()
    with pytest.raises(FrozenInstanceError):
        found.checks = ()
    with pytest.raises(TypeError):
        found["checks"] = []
    found["checks"].append("b")
    found.to_dict()["checks"].append("b")
    assert found["checks"] == found.to_dict()["checks"] and found["checks"][0]["name"] == found.checks[0].name
    assert dict(found) == found.to_dict() == json.loads(found.to_json()) and len(found) == 3
    assert repr(found) == "Health of version, ok, checks" and "text" not in found
    with pytest.raises(KeyError, match="text"):
        found["text"]


def test_notes_are_told_and_belong_to_one_call(checkpoint, data, tmp_path):
    """Records without a sequence are told of each time, and stand with the figures of those who read them."""
    told = []
    options = {"data": data, "context": 50, "limit": 3}
    with session(told.append):
        first, second = (evaluate(str(checkpoint), **options) for _ in range(2))
        plain = sparsify.convert(str(checkpoint), tmp_path / "out", taps=5)
    notes = [event.text for event in told if event.kind == "note"]
    assert len(notes) == 2 and "left out" in notes[0]
    assert first["data_notes"] == second["data_notes"] == notes[:1] and plain["evaluation"] is None


def test_sessions_lie_within_each_other():
    outer, inner = [], []
    with session(outer.append) as told:
        with session():
            progress.say("to the outer")
            progress.note("of the inner")
            progress.goes_on_from("a journal")
            assert progress.noted() == ["of the inner"]
        with session(inner.append), progress.counting("work", 5, "step") as advance:
            advance(2, 5)
            advance(5, 5, "well")
        assert told.notes == [] and told.journal == "a journal"
    progress.say("to nobody")
    assert [str(event) for event in outer] == ["to the outer", "note: of the inner"]
    assert inner == [
        Event("start", "work", 0, 5, "step"),
        Event("advance", "", 2, 5, "step"),
        Event("advance", "well", 5, 5, "step"),
        Event("end", "work", 5, 5, "step"),
    ]
    assert str(inner[2]) == "5 of 5 steps, well"


def test_a_callback_can_end_the_work_and_the_bar_is_closed(checkpoint, data):
    told = []

    def impatient(event):
        told.append(event.kind)
        if event.kind == "advance":
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError, match="enough"):
        evaluate(str(checkpoint), data=data, context=50, limit=3, progress=impatient)
    assert told[-3:] == ["start", "advance", "end"]


def test_what_an_interrupted_search_goes_on_from(checkpoint, data, tmp_path):
    """It is known to whoever opened a session around it, and forgotten when the plan is written."""
    ask = {"max_ppl_increase": 0.5, "calibration": data, "target": "kept", "context": 40, "out": tmp_path / "out"}

    def impatient(event):
        if event.kind == "end":
            raise KeyboardInterrupt

    with session(impatient) as told, pytest.raises(KeyboardInterrupt):
        sparsify.convert(str(checkpoint), **ask)
    assert told.journal and str(told.journal).endswith(f"kept in {tmp_path / '.out.planning'}")
    with session() as told:
        found = sparsify.convert(str(checkpoint), **ask)
    assert told.journal is None and found["planned"]["chosen"]["fits"] and [*tmp_path.iterdir()] == [tmp_path / "out"]
    assert load(tmp_path / "out").plan.policy == "max-ppl-increase 50%"


def test_numbers_that_the_command_line_would_not_take_are_refused(checkpoint, data, tmp_path):
    src, out = str(checkpoint), tmp_path / "out"
    for sentence, call in (
        ("--taps must be 1 or more, got 0", lambda: sparsify.convert(src, out, taps=0)),
        ("--limit must be 0 or more, got -1", lambda: evaluate(src, data=data, limit=-1)),
        ("--length must be 2 or more, got 1", lambda: sparsify.analyze(src, length=1)),
        ("--top-k must be 1 or more, got 0", lambda: sparsify.generate(src, "ACGT", top_k=0)),
        ("--rounds must be 3 or more, got 1", lambda: sparsify.bench(src, rounds=1)),
        (r"--shape takes \(batch, channels, length\)", lambda: sparsify.bench(shapes=[(1, 0, 3)])),
        ("--quick is about the convolution alone", lambda: sparsify.bench(src, quick=True)),
        ("--batch is about a model", lambda: sparsify.bench(batch=2)),
        ("linears in 'float16'; choose one of float32, bfloat16",
         lambda: evaluate(src, data=data, context=50, linears="float16")),
        ("there is no evaluation 'perplexity'; choose one of ppl, front, glue, mlm, retrieval",
         lambda: evaluate(src, data, kind="perplexity")),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=sentence):
            call()
    assert not out.exists()
