"""The way of a new user, by the program alone: convert by id, push, load elsewhere; and killed on the way."""

import json
import random
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import hub_client
import layouts_lm
import pytest
import torch
from helpers import ROOT
from hub_server import WRITER
from layouts import mark, write_tiny

from sparsify.cli.push import in_words
from sparsify.converters import load
from sparsify.converters.hub.upload import published
from sparsify.converters.tensors import read_tensors
from sparsify.report.schema import Push
from sparsify.storage.files import readable_size
from sparsify.storage.tensors import fingerprint

DEMO = ROOT / "demo" / "hyenadna-chr20-8k"
CONVERT = ("convert", "org/tiny", "--taps", 5)
SLOW = [{"match": "PUT /_lfs/|POST .*/commit/", "slow": 0.1, "times": 99}]
WHOLE = {
    *("README.md", "config.json", "model.safetensors", "plan.json", "report.html", "report.json"),
    *("tokenizer.json", "tokenizer_config.json"),
}
WHOLE |= {"plan.png"} if find_spec("matplotlib") else set()


def serve(hub, repo, folder):
    hub.store.create(repo, {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.faults()


def run(hub, home, *command):
    """What a process of its own says on stdout, with its cache in `home`."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=hub.environment(home))
    assert done.returncode == 0 and WRITER not in done.stdout + done.stderr, done.stderr
    return done.stdout


def test_convert_by_id_push_and_load_elsewhere(hub, tmp_path):
    """The logits after the round trip are those before it, bit for bit, by our loader and by transformers' own."""
    serve(hub, "org/hyenadna-demo", DEMO)
    repo, out, ids = "me/hyenadna-sparse", tmp_path / "out", torch.arange(7, 11).repeat(1, 50)
    ask = ("convert", "org/hyenadna-demo", out, "--split", "64:0.125", "--push", repo, "--json")
    pushed = json.loads(run(hub, tmp_path / "home", "-m", "sparsify", *ask))["pushed"]
    assert pushed["created"] and pushed["uploaded"].keys() == WHOLE
    card = (out / "README.md").read_text()
    assert "base_model: org/hyenadna-demo" in card and "license: apache-2.0" in card and "- dna" in card
    script = (
        "import sys, sparsify, torch\nfrom transformers import AutoModelForCausalLM\ntorch.set_grad_enabled(False)\n"
        "repo, revision, file = sys.argv[1:]\nids = torch.arange(7, 11).repeat(1, 50)\n"
        "auto, p = AutoModelForCausalLM.from_pretrained(repo, revision=revision), sparsify.load(repo, revision)\n"
        "torch.save([p.source.revision, auto(ids).logits, p.model(ids)], file)\n"
    )
    run(hub, tmp_path / "another home", "-c", script, repo, pushed["commit"], tmp_path / "there.pt")
    revision, auto, there = torch.load(tmp_path / "there.pt")
    assert revision == pushed["commit"] and torch.equal(auto, there)
    assert torch.equal(there, load(out).model(ids)) and not torch.equal(there, load(DEMO).model(ids))


def test_a_pickle_without_a_config_from_the_hub_and_back(hub, tmp_path):
    """A Hyena LM as published: one file of a name of its own, and neither a config.json nor a vocabulary."""
    serve(hub, "org/hyena-small", layouts_lm.write(tmp_path / "source"))
    repo, ids = "me/hyena-small-sparse", torch.arange(40)[None] * 1000
    ask = ("convert", "org/hyena-small", tmp_path / "out", "--taps", 5, "--push", repo, "--json")
    result = json.loads(run(hub, tmp_path / "home", "-m", "sparsify", *ask))
    assert result["family"] == "hyena_lm"
    assert result["pushed"]["uploaded"].keys() == WHOLE - {"tokenizer.json", "tokenizer_config.json"}
    script = (
        "import sys, sparsify, torch\nfrom transformers import AutoModelForCausalLM\ntorch.set_grad_enabled(False)\n"
        "auto = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "torch.save(auto(torch.arange(40)[None] * 1000).logits, sys.argv[2])"
    )
    run(hub, tmp_path / "another home", "-c", script, repo, tmp_path / "there.pt")
    there, dense = torch.load(tmp_path / "there.pt"), load(tmp_path / "source").model(ids)
    assert torch.equal(there, load(tmp_path / "out").model(ids)) and not torch.equal(there, dense)


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(hub, tmp_path_factory):
    """`sparsify` in a copy of a process that has imported all it needs, so that most of a run is work."""
    room = tmp_path_factory.mktemp("program")
    serve(hub, "org/tiny", write_tiny(room / "tiny"))
    with hub_client.running(hub.environment(room / "home"), room / "log") as client:
        yield lambda *argv, **options: client.ask("program", *argv, **options)["found"]


@pytest.fixture(scope="module")
def convert_seconds(program, hub, tmp_path_factory):
    """What converting and pushing takes, the first run of all left out."""
    for i in range(2):
        seconds = succeed(program, *CONVERT, tmp_path_factory.mktemp("timed") / "out", "--push", f"me/timed-{i}")
    return seconds


def succeed(program, *argv):
    """Seconds that it took."""
    code, seconds, said = program(*argv)
    assert code == 0, said
    return seconds


def check_folder(out):
    """Not there, or whole."""
    if out.exists():
        assert published(out).keys() == WHOLE
        assert json.loads((out / "report.json").read_text())["sha256"] == fingerprint(read_tensors(out))


def check_repository(hub, repo, out):
    """Not there, or as it began, or all of the folder in one commit."""
    if not (hub.store.root / "repos" / f"{repo.replace('/', '--')}.json").exists():
        return
    files = hub.store.files(repo)
    names = files.keys() - {".gitattributes"}
    assert names in (set(), WHOLE) and len(hub.store.log(repo)) == 1 + bool(names)
    assert all(hub.store.content(files[name]) == (out / name).read_bytes() for name in names)


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_conversion_leaves_nothing_half_done(hub, program, convert_seconds, tmp_path, seed, saving):
    """Killed at any time, or while the folder is written."""
    out, repo = tmp_path / "out", f"me/converted-{seed}-{saving}"
    ask = (*CONVERT, out, "--force", "--push", repo)
    hub.faults(*SLOW)
    when = {"kill_after": random.Random(seed).random() * (0.02 if saving else convert_seconds)}
    program(*ask, **when, saving=tmp_path if saving else None)
    check_folder(out)
    check_repository(hub, repo, out)
    succeed(program, *ask)
    check_folder(out)
    assert on_hub_in_the_end(hub, repo, out)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_push_leaves_nothing_half_done(hub, program, convert_seconds, tmp_path, seed):
    out, repo = tmp_path / "out", f"me/pushed-{seed}"
    succeed(program, *CONVERT, out)
    mark(out / "model.safetensors", str(seed))  # unlike any other, so that they have to be uploaded
    hub.faults(*SLOW)
    program("push", out, repo, kill_after=random.Random(seed).random() * convert_seconds / 2)
    check_repository(hub, repo, out)
    succeed(program, "push", out, repo)
    check_repository(hub, repo, out)
    assert on_hub_in_the_end(hub, repo, out)


def on_hub_in_the_end(hub, repo, out):
    files = hub.store.files(repo)
    return {name: hub.store.content(files[name]) for name in WHOLE} == {p.name: p.read_bytes() for p in out.iterdir()}


# --- what the program says ------------------------------------------------------------------------------------------


def test_refusals_come_before_the_work_and_in_one_sentence(hub, program, tmp_path):
    serve(hub, "org/somebodys", DEMO)
    for argv, says in (
        ((*CONVERT, tmp_path / "out", "--push", "nobody/x"), "nobody is neither me"),
        ((*CONVERT, tmp_path / "out", "--push", "org/somebodys"), "files that sparsify did not write"),
        ((*CONVERT, tmp_path / "out", "--push", "no-name"), "is no name of a repository"),
        (("push", tmp_path / "nowhere", "me/x"), "was not written by sparsify"),
        ((*CONVERT, tmp_path / "out", "--benchmark", "org/data:task"), "add --data FILE"),
    ):
        code, _, (sentence,) = program(*argv)
        assert code == 1 and sentence.startswith("Error: ") and says in sentence
    assert list(tmp_path.iterdir()) == []


def test_what_is_said_of_a_push(hub, program, tmp_path):
    """Last of all how to load it, this very commit."""
    out, repo = tmp_path / "out", "me/said"
    succeed(program, *CONVERT, out)
    assert program("push", out, repo, "--dry-run")[2] == [
        f"  + tokenizer_config.json  {readable_size((out / 'tokenizer_config.json').stat().st_size)}"
    ]
    assert not (hub.store.root / "repos" / "me--said.json").exists()
    _, _, (last,) = program("push", out, repo)
    commit = hub.store.resolve(repo, "main")
    assert last == f'import sparsify; sparsify.load("{repo}", revision="{commit}")'


def test_the_words_for_what_was_done():
    done = Push(
        repo="me/x", branch="main", url="http://hub/me/x", commit="c0", changed=True, created=False, pull_request=None,
        uploaded={"a": 1234}, deleted=["b"], unchanged=["c", "d"], dry_run=False, load="load it",
    )  # fmt: skip
    files = ["  + a  1.23 kB", "  - b", "  = 2 unchanged"]
    assert in_words(done).splitlines() == [*files, "pushed to http://hub/me/x, commit c0", "load it"]
    proposed = in_words(replace(done, pull_request="http://hub/me/x/discussions/1")).splitlines()
    assert proposed[3] == "pull request: http://hub/me/x/discussions/1"
    would = replace(done, dry_run=True)
    assert in_words(would).splitlines() == ["http://hub/me/x would change:", *files]
    assert in_words(replace(would, created=True)).startswith("http://hub/me/x would be made:")
    same = {"uploaded": {}, "deleted": [], "changed": False}
    assert in_words(replace(would, **same)).splitlines() == ["http://hub/me/x would stay as it is:", files[2]]
    assert "nothing to push: the same is at http://hub/me/x, commit c0" in in_words(replace(done, **same))
