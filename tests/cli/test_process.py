"""What the command line owes to a shell: signals, streams that are closed, full, narrow, or that nobody reads."""

import json
import os
import re
import shutil
import signal
import subprocess
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
from click.testing import CliRunner
from layouts import write_tiny
from rich.console import Console
from verbs import answer, refusal

from sparsify import process
from sparsify.cli import tables
from sparsify.cli.main import main

SIGNALS = [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")]
SCRIPT = "import sys\nfrom sparsify.cli import main\nsys.exit(main())\n"  # as pip writes it
termios = pytest.importorskip("termios", reason="needs a POSIX shell and its terminals")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("source") / "tiny")


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_torch(tmp_path, python):
    """As `python`, with a torch whose import takes for ever, and says so first."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    (tmp_path / "sparsify").write_text(SCRIPT)
    env, path, *rest = python
    return [env, path.replace("PYTHONPATH=", f"PYTHONPATH={tmp_path / 'slow'}:"), *rest]


def signalled(command, number):
    """Exit code and stderr of a command that gets a signal as soon as it prints something."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "importing\n"
        running.send_signal(number)
        said = running.communicate()[1]
    return running.returncode, said


@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
@pytest.mark.parametrize("way", ["module", "script"])
def test_a_signal_while_it_starts_is_one_word(slow_torch, tmp_path, way, number, code, word):
    command = [*slow_torch, *(["-m", "sparsify"] if way == "module" else [tmp_path / "sparsify"]), "doctor"]
    assert signalled(command, number) == (code, f"\n{word}\n")


def test_programs_that_import_the_package_keep_their_signals(slow_torch):
    code, said = signalled([*slow_torch, "-c", "import sparsify"], signal.SIGINT)
    assert code in (-signal.SIGINT, 130) and said.rstrip().endswith("KeyboardInterrupt")


def test_ignored_signals_stay_ignored():
    """As nohup and shells without job control have it for what runs in the background."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with process.stoppable():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGINT) is process.stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("moment", ["as it begins", "within"])
@pytest.mark.parametrize(("number", "code", "word"), SIGNALS)
def test_a_signal_closes_the_bar_of_a_terminal(python, number, code, word, moment):
    """What is left on the last line is the word alone, and a cursor."""
    script = f"""
import os, sys, time
from rich.progress import Progress
from sparsify import cli
from sparsify.pipeline import progress
def stop(*_, **__):
    os.kill(os.getpid(), {int(number)})
    time.sleep(60)
@cli.main.command()
def slow():
    if {moment == "as it begins"}:
        Progress.add_task = stop
    with progress.bar("working", 10) as advance:
        advance(1)
        stop()
cli.main(["slow"])
"""
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 80))  # without a width there is no bar
    done = subprocess.run([*python, "-c", script], stderr=end, stdout=subprocess.PIPE)
    os.close(end)
    said = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert done.returncode == code and "Traceback" not in said
    assert ("working" in said) == (moment == "within")
    hide, show, erase = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"
    assert said.rfind(hide) < said.rfind(show) and said.rfind("working") < said.rfind(erase), repr(said)
    assert said.rstrip().rsplit("\n", 1)[1] == word


# --- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(python, checkpoint, tmp_path, closed):
    """All is written as if they led nowhere, and nothing that is printed gets into a file that has their number now.

    A result that nobody could see is no success.
    """
    out = tmp_path / "out"
    command = [*python, "-m", "sparsify", "convert", str(checkpoint), str(out), "--taps", "5"]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True)
    assert done.returncode == (0 if closed == "2>&-" else 1), done.stderr
    assert closed != ">&-" or "Error: standard output is closed, so the result is not" in done.stderr.splitlines()[-1]
    assert "isatty" not in done.stderr and (out / "report.json").read_text().startswith("{")
    assert bool(done.stdout) == (closed == "2>&-") and bool(done.stderr) == (closed == ">&-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_output_is_one_sentence(python, checkpoint):
    command = [*python, "-m", "sparsify", "analyze", str(checkpoint), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        *progress, said = done.stderr.splitlines()
        assert done.returncode == 1 and said.startswith("Error: the output could not be written (No space left on")
        assert [line.split()[0] for line in progress] == ["loading", "note:"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True)
    assert done.returncode == 0 and done.stdout.startswith("{")  # progress that nobody can read stops no work


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough(python, checkpoint, options):
    """As `| head`: silence, and the exit code that shells have for SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    command = [*python, "-m", "sparsify", "analyze", str(checkpoint), *options]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["loading", "note:"]


def test_ascii_is_enough(python, checkpoint):
    command = [*python, "-m", "sparsify", "analyze", str(checkpoint)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"###" in done.stdout and b"site" in done.stdout


def test_letters_that_an_encoding_lacks_are_spelled():
    assert process.as_written("0.1 ± 2 × 3 … ‘a’ — naïve 漢 ▁█", "ascii") == "0.1 +- 2 x 3 ... 'a' - naive ? _#"
    assert process.as_written("0.1 ± 2 …", "latin-1") == "0.1 ± 2 ..."
    assert process.as_written("0.1 ± 2 … 漢 ▁█", "utf-8") == "0.1 ± 2 … 漢 ▁█"
    assert "\udcff\ud800".encode("utf-8", process.PLAIN) == b"\xff?"


def test_columns_line_up_in_any_encoding():
    """`+-` is wider than the sign, and whoever sets tables has to know."""
    paper = TextIOWrapper(BytesIO(), encoding="ascii", errors=process.PLAIN)
    tables.table(Console(file=paper, width=80), "title", ("loss", "next"), [("0.1 ± 0.2", "a"), ("0.1", "b")])
    paper.flush()
    first, second = paper.buffer.getvalue().decode().splitlines()[-2:]
    assert "+-" in first and first.index("a") == second.index("b")


def test_the_systems_own_words_name_the_file(checkpoint):
    done = CliRunner().invoke(main, ["convert", str(checkpoint), "/proc/nothing/out", "--taps", "5"])
    said = done.stderr.splitlines()[-1]
    assert done.exit_code == 1 and re.match(r"Error: /proc/nothing\S* cannot be used \(No such file", said)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="needs /dev/stdout")
def test_json_that_is_saved_to_stdout_is_printed_once(python, tmp_path, checkpoint):
    command = [*python, "-m", "sparsify", "bench", str(checkpoint), "--length", "16", "--rounds", "3", "--json"]
    done = subprocess.run([*command, "--save", "/dev/stdout"], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["length"] == 16, done.stderr


# --- names ---------------------------------------------------------------------------------------------------------


def test_names_that_are_not_utf8_are_told_in_one_sentence(checkpoint, tmp_path):
    """Data may be called what they like; the library that has the weights takes UTF-8 alone."""
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        shutil.copytree(checkpoint, odd)
    except OSError:
        pytest.skip("this disk takes UTF-8 alone")
    (data := odd / os.fsdecode(b"d\xe9.txt")).write_text("ACGTTGCA" * 100)
    assert "caf\\xe9 has a name that is not UTF-8, and weights need one" in refusal("inspect", odd)
    for verb in (("convert", checkpoint, odd.with_name("o" + odd.name), "--taps", 5),
                 ("finetune", checkpoint, "--task", "sst2", "--data", tmp_path, "--out", odd / "new")):  # fmt: skip
        assert "xe9" in (said := refusal(*verb)) and "is not UTF-8" in said
    assert "there is no file " in (said := refusal("eval", "ppl", checkpoint, "--data", odd / "none"))
    assert "caf\\xe9/none" in said
    found = answer("convert", checkpoint, tmp_path / "out", "--taps", 5, "--data", data)
    assert found["data"] == "d\\xe9.txt" and "d\\xe9.txt" in (tmp_path / "out" / "README.md").read_text()
    typed = found["next"].split(" --data ")[1]
    assert subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True).stdout == os.fsencode(data)


def test_an_empty_name_is_not_the_folder_one_is_in(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(checkpoint)
    for args in (("inspect", ""), ("convert", "", tmp_path / "out"), ("bench", checkpoint, "--baseline", ""),
                 ("eval", "glue", checkpoint, "--task", "sst2", "--data", ""),
                 ("finetune", "", "--task", "sst2", "--data", tmp_path, "--out", tmp_path / "out")):  # fmt: skip
        assert "got an empty name, as of a variable that is not set; pass " in refusal(*args)
