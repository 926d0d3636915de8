"""Pulling and pushing with the real client, against a hub on this machine that fails in every way we could think of."""

import json
import re
import shutil
from pathlib import Path

import hub_client
import pytest
from click.testing import CliRunner
from hub_server import READER, STRANGER, WRITER
from layouts import mark, write, write_tiny

from sparsify import __version__ as VERSION
from sparsify.cli.main import main
from sparsify.converters.tensors import read_tensors
from sparsify.storage.tensors import fingerprint

SERVED = ("config.json", "model.safetensors")
WEIGHTS = "GET /org/[^/]*/resolve/.*/model.safetensors"
FOR_EVER = {"times": 99}


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """The real client, in a process of its own; no token ever appears in what it says."""
    room = tmp_path_factory.mktemp("client")
    with hub_client.running(hub.environment(room / "home"), room / "log") as client:
        yield client
        said = client.log.read_text()
        assert not [token for token in (WRITER, READER, STRANGER) if token in said]


@pytest.fixture(autouse=True)
def as_writer(client, hub):
    client.ask("token", WRITER)
    hub.faults()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small HyenaDNA as the hub has them."""
    return write(tmp_path_factory.mktemp("source") / "tiny", "hf")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Two folders that `convert` wrote, of the same weights under other plans."""
    room = tmp_path_factory.mktemp("converted")
    source = write_tiny(room / "source")
    for name, taps in (("one", "5"), ("two", "7")):
        done = CliRunner().invoke(main, ["convert", str(source), str(room / name), "--taps", taps])
        assert done.exit_code == 0, done.output
    return room / "one", room / "two"


@pytest.fixture
def out(converted, tmp_path):
    return Path(shutil.copytree(converted[0], tmp_path / "out"))


@pytest.fixture
def repo(request):
    """A name that no other test uses."""
    return "org/" + "".join(c if c.isalnum() else "-" for c in request.node.name).strip("-")[:80].rstrip("-")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def on_hub(hub, repo, revision="main") -> dict[str, bytes]:
    files = hub.store.files(repo, revision)
    return {name: hub.store.content(entry) for name, entry in files.items() if name != ".gitattributes"}


def left_in_cache(client_home: Path, repo: str) -> list[str]:
    """Files that a later run would take for good."""
    cache = client_home / "hub" / f"models--{repo.replace('/', '--')}"
    return [path.name for path in cache.glob("snapshots/*/*.safetensors")]


# --- pulling --------------------------------------------------------------------------------------------------------


PULL_FAULTS = {  # what goes wrong -> faults, what is said in the end, or None where it comes right
    "500 once": ([{"match": "blobs=true", "status": 500}], None),
    "502 twice": ([{"match": "blobs=true", "status": 502, "times": 2}], None),
    "listing 503 for ever": (
        [{"match": "blobs=true", "status": 503, **FOR_EVER}],
        "answered 503; run the same command again later",
    ),
    "second listing 500 once": ([{"match": "revision/main$", "status": 500}], None),
    "tree 500 once": ([{"match": "/tree/", "status": 500}], None),
    "weights 500 once": ([{"match": WEIGHTS, "status": 500}], None),
    "weights 500 for ever": (
        [{"match": WEIGHTS, "status": 500, **FOR_EVER}],
        "answered 500; run the same command again later",
    ),
    "head 503 for ever": (
        [{"match": "HEAD ", "status": 503, **FOR_EVER}],
        "answered 503; run the same command again later",
    ),
    "busy": ([{"match": "blobs=true", "status": 429, "headers": {"Retry-After": "7"}}], None),
    "busy for hours": (
        [{"match": "blobs=true", "status": 429, "headers": {"Retry-After": "3600"}}],
        "answered 429; it is busy; try again in 3600 s",
    ),
    "forbidden": ([{"match": "blobs=true", "status": 403}], "answered 403; set HF_TOKEN to a token that may read it"),
    "unknown token": ([{"match": "blobs=true", "status": 401}], "answered 401; set HF_TOKEN to a token that may read"),
    "weights forbidden": ([{"match": WEIGHTS, "status": 403}], "answered 403; set HF_TOKEN"),
    "reset once": ([{"match": WEIGHTS, "cut": 1000, "reset": True}], None),
    "reset for ever": (
        [{"match": WEIGHTS, "cut": 1000, "reset": True, **FOR_EVER}],
        "the connection to the hub broke off",
    ),
    "closed once": ([{"match": WEIGHTS, "cut": 1000}], None),
    "short once": ([{"match": WEIGHTS, "cut": 9, "change": {"Content-Length": "9"}}], None),
    "short for ever": (
        [{"match": WEIGHTS, "cut": 9, "change": {"Content-Length": "9"}, **FOR_EVER}],
        "a file came cut short; run the same command again later",
    ),
    "wrong content once": ([{"match": WEIGHTS, "flip": True}], None),
    "wrong content for ever": (
        [{"match": WEIGHTS, "flip": True, **FOR_EVER}],
        "model.safetensors of {repo} came with another content than the hub lists",
    ),
    "wrong ETag": ([{"match": WEIGHTS.replace("GET", "HEAD"), "change": {"X-Linked-ETag": '"1234"'}}], None),
    "slow": ([{"match": "blobs=true", "slow": 0.5}, {"match": WEIGHTS, "slow": 0.5}], None),
    "no JSON": ([{"match": "blobs=true", "flip": True}], "is not understood; is HF_ENDPOINT the address of a hub?"),
    "moved meanwhile": ([{"match": "revision/main$", "meanwhile": "{repo}"}], "changed while it was downloaded"),
}


@pytest.mark.parametrize("what", PULL_FAULTS)
def test_every_fault_of_a_download_ends_well_or_in_a_sentence(client, hub, tiny, repo, what):
    faults, says = PULL_FAULTS[what]
    hub.store.create(repo, contents(tiny))
    hub.faults(*json.loads(json.dumps(faults).replace("{repo}", repo)))
    said = client.ask("pull", repo)
    if says is None:
        assert said["found"]["sha256"] == fingerprint(read_tensors(tiny)), said
    else:
        assert says.format(repo=repo) in said["refused"] and "\n" not in said["refused"]
        assert what == "moved meanwhile" or not left_in_cache(client.log.parent / "home", repo)
    hub.faults()
    assert client.ask("pull", repo)["found"]["sha256"] == fingerprint(read_tensors(tiny))  # the same command again
    assert sum(said["waited"]) <= 60


def test_a_hub_that_does_not_answer_is_not_waited_for_for_ever(client, hub, tiny, repo):
    hub.store.create(repo, contents(tiny))
    hub.faults({"match": "blobs=true", "slow": 0.5, **FOR_EVER})
    said = client.ask("pull", repo, timeout=0.05)
    assert "the connection to the hub broke off" in said["refused"] and len(said["waited"]) == 3


def test_waits_are_as_the_hub_says_and_grow_by_themselves(client, hub, tiny, repo):
    hub.store.create(repo, contents(tiny))
    hub.faults(
        {"match": "blobs=true", "status": 429, "headers": {"Retry-After": "7"}}, {"match": "blobs", "status": 502}
    )
    assert client.ask("pull", repo)["waited"] == [7.0, 2.0]


def test_a_closed_connection_goes_on_where_it_stopped(client, hub, tiny, repo):
    piece = 10 << 20  # that the client keeps at a time
    hub.store.create(repo, {**contents(tiny), "LICENSE": bytes(piece + 5000)})
    hub.faults({"match": "GET .*/LICENSE", "cut": piece + 1000})
    client.ask("pull", repo)
    asked = [line for line in hub.seen() if line.startswith("GET") and "LICENSE" in line]
    assert len(asked) == 2 and asked[1].endswith(f" bytes={piece}-")


def test_only_what_a_model_needs_is_downloaded_and_nothing_outside_its_folder(client, hub, tiny, repo):
    extra = ["pytorch_model.bin", "model.fp16.safetensors", "modeling_hyena.py", "report.json", "a/model.safetensors"]
    extra += ["../evil.json", "/tmp/evil.json", "..\\config.json", "checkpoint-7/config.json", "optimizer.pt"]
    hub.store.create(repo, {**contents(tiny), "README.md": b"# it", **dict.fromkeys(extra, b"never asked for")})
    found = client.ask("pull", repo)["found"]
    assert found["files"] == ["README.md", "config.json", "model.safetensors"]
    asked = {line.split("/")[-1] for line in hub.seen() if "/resolve/" in line}
    assert asked == {"README.md", "config.json", "model.safetensors"}


def test_shards_and_pickles(client, hub, tmp_path, repo):
    hub.store.create(repo, {"a.safetensors": b"1", "b.safetensors": b"2", "c.bin": b"3"})
    assert "several weight files" in client.ask("pull", repo)["refused"]
    write(tmp_path / "raw", "raw checkpointed")
    hub.store.create(f"{repo}-raw", contents(tmp_path / "raw"))
    assert "weights.ckpt" in client.ask("pull", f"{repo}-raw")["found"]["files"]


def test_the_disk_is_looked_at_first(client, hub, tiny, repo):
    hub.store.create(repo, contents(tiny))
    said = client.ask("pull", repo, room=1000)["refused"]
    assert re.search(
        r" needs [\d.]+ kB and the disk of .* has 1\.00 kB left; free [\d.]+ kB more, or set HF_HOME", said
    )
    assert not [line for line in hub.seen() if "/resolve/" in line]
    assert "found" in client.ask("pull", repo)
    assert "found" in client.ask("pull", repo, room=0)  # nothing left to download


def test_offline_takes_a_complete_copy_only(client, hub, tiny, repo):
    hub.store.create(repo, contents(tiny))
    assert "HF_HUB_OFFLINE is set" in client.ask("pull", repo, offline=True)["refused"]
    hub.faults({"match": WEIGHTS, "status": 403})
    client.ask("pull", repo)
    assert "HF_HUB_OFFLINE is set" in client.ask("pull", repo, offline=True)["refused"]  # half a copy is none
    online = client.ask("pull", repo)["found"]
    hub.faults()
    assert client.ask("pull", repo, offline=True)["found"] == online and hub.seen() == []
    hub.faults({"match": "blobs=true", "status": 500, **FOR_EVER})
    assert client.ask("pull", repo)["found"] == online


def flip(path):
    """One bit of the last byte, which is part of a tensor in safetensors."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("name", SERVED)  # known by sha256, and by what git calls it
@pytest.mark.parametrize("offline", [False, True])
def test_a_bit_that_flips_in_the_cache_is_seen(client, hub, tiny, repo, name, offline):
    hub.store.create(repo, contents(tiny))
    assert "found" in client.ask("pull", repo)
    (path,) = (client.log.parent / "home" / "hub" / f"models--{repo.replace('/', '--')}").glob(f"snapshots/*/{name}")
    flip(path)
    said = client.ask("pull", repo, offline=offline)["refused"]
    assert said.startswith(f"{path} has changed on this disk since it was downloaded") and "\n" not in said
    Path(re.search(r"; delete (.*), and the same command downloads it again", said)[1]).unlink()
    assert client.ask("pull", repo)["found"]["sha256"] == fingerprint(read_tensors(tiny))


def test_a_bit_that_flips_before_a_push_is_seen(client, hub, out, repo):
    flip(out / "model.safetensors")
    said = client.ask("push", out, repo)["refused"]
    assert said.startswith(f"the weights in {out} are not those that config.json records") and not hub.seen()
    assert client.ask("push", out, repo, force=True)["found"]["changed"]


def test_gated_and_private(client, hub, tiny, repo):
    hub.store.create(repo, contents(tiny), gated=True)
    hub.store.create(f"{repo}-private", contents(tiny), private=True)
    client.ask("token", STRANGER)
    assert f"{repo} is gated; ask for access at {hub.endpoint}/{repo}" in client.ask("pull", repo)["refused"]
    assert "set HF_TOKEN if the repository is private" in client.ask("pull", f"{repo}-private")["refused"]
    client.ask("token", None)
    assert "is gated" in client.ask("pull", repo)["refused"]
    client.ask("token", WRITER)
    assert "found" in client.ask("pull", repo) and "found" in client.ask("pull", f"{repo}-private")


# --- pushing --------------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_of_exactly_the_folder(client, hub, out, repo):
    made = client.ask("push", out, repo)["found"]
    assert on_hub(hub, repo) == contents(out) and hub.store.log(repo) == [f"out, made by sparsify {VERSION}", "begin"]
    assert made["created"] and made["changed"] and made["commit"] == hub.store.resolve(repo, "main")
    assert made["uploaded"].keys() == contents(out).keys() and made["url"] == f"{hub.endpoint}/{repo}"
    assert client.ask("pull", repo)["found"]["sha256"] == fingerprint(read_tensors(out))


def test_the_same_again_is_no_commit(client, hub, out, repo):
    first = client.ask("push", out, repo)["found"]
    hub.faults()
    again = client.ask("push", out, repo)["found"]
    assert not again["changed"] and not again["uploaded"] and again["commit"] == first["commit"]
    assert not [line for line in hub.seen() if line.startswith(("POST", "PUT"))] and len(hub.store.log(repo)) == 2


def test_another_push_takes_away_what_the_first_one_left(client, hub, out, converted, repo):
    (out / ".eval_results").mkdir()
    for name in ("extra.txt", ".eval_results/old.yaml"):
        (out / name).write_text("of the first")
        add_to_list(out, name)
    client.ask("push", out, repo)
    hub.store.commit(repo, "main", {"pictures/mine.png": hub.store.keep(b"png")}, "added by hand")
    made = client.ask("push", converted[1], repo)["found"]
    assert made["deleted"] == [".eval_results/old.yaml", "extra.txt"] and "model.safetensors" in made["unchanged"]
    assert on_hub(hub, repo) == {**contents(converted[1]), "pictures/mine.png": b"png"}
    assert len(hub.store.log(repo)) == 4


def add_to_list(folder, name):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["files"].append(name)
    (folder / "config.json").write_text(json.dumps(config))


def test_only_listed_files_are_sent(client, hub, out, repo):
    (out / "secret.txt").write_text("never listed")
    (out / ".env").write_text("TOKEN")
    (out / ".eval_results").mkdir()
    (out / ".eval_results" / "data.yaml").write_text("[]")
    add_to_list(out, ".eval_results/data.yaml")
    client.ask("push", out, repo)
    sent = on_hub(hub, repo)
    assert "secret.txt" not in sent and ".env" not in sent and sent[".eval_results/data.yaml"] == b"[]"


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", ".env", "a/.hidden", "", "..\\evil"])
def test_a_list_with_names_that_do_not_belong_is_refused(client, hub, out, repo, name):
    add_to_list(out, name)
    assert "does not belong on the hub" in client.ask("push", out, repo)["refused"] and hub.seen() == []


def test_links_out_and_lost_files_are_refused(client, hub, out, tmp_path, repo):
    (tmp_path / "private.txt").write_text("private")
    (out / "link.txt").symlink_to(tmp_path / "private.txt")
    add_to_list(out, "link.txt")
    assert "is a link out of its folder" in client.ask("push", out, repo)["refused"]
    (out / "link.txt").unlink()
    assert "has lost its link.txt" in client.ask("push", out, repo)["refused"]
    assert hub.seen() == []


def test_a_folder_of_somebody_else_is_not_pushed(client, hub, tiny, repo):
    assert "was not written by sparsify" in client.ask("push", tiny, repo)["refused"]
    assert "was not written by sparsify" in client.ask("push", tiny / "nowhere", repo)["refused"]
    assert hub.seen() == []


def test_a_repository_with_something_else_is_spared(client, hub, out, tiny, repo):
    theirs = {"README.md": b"# mine", "model-00001.safetensors": b"w", "model.safetensors.index.json": b"{}"}
    hub.store.create(repo, {**contents(tiny), **theirs})
    said = client.ask("push", out, repo)["refused"]
    assert "files that sparsify did not write, such as README.md" in said and "--force" in said
    assert len(hub.store.log(repo)) == 1
    made = client.ask("push", out, repo, force=True)["found"]
    assert made["deleted"] == ["model-00001.safetensors", "model.safetensors.index.json"]  # they would be loaded
    assert on_hub(hub, repo) == contents(out)


def test_dry_run_changes_nothing(client, hub, out, converted, repo):
    would = client.ask("push", out, repo, dry_run=True)["found"]
    assert would["created"] and would["commit"] is None and would["uploaded"].keys() == contents(out).keys()
    assert not [line for line in hub.seen() if not line.startswith(("GET", "HEAD"))]
    client.ask("push", out, repo)
    hub.faults()
    would = client.ask("push", converted[1], repo, dry_run=True)["found"]
    assert "plan.json" in would["uploaded"] and "model.safetensors" in would["unchanged"]
    assert not [line for line in hub.seen() if not line.startswith(("GET", "HEAD"))]
    assert on_hub(hub, repo) == contents(out)


def test_private_is_kept_or_refused(client, hub, out, repo):
    client.ask("push", out, repo, private=True)
    assert hub.store.about(repo)["private"]
    client.ask("push", out, f"{repo}-open")
    said = client.ask("push", out, f"{repo}-open", private=True)["refused"]
    assert "is there and public" in said


def test_a_branch_and_a_message_of_ones_own(client, hub, out, converted, repo):
    client.ask("push", out, repo)
    made = client.ask("push", converted[1], repo, revision="try/2", message="second try")["found"]
    assert made["url"].endswith("/tree/try/2") and hub.store.log(repo, "try/2")[0] == "second try"
    assert on_hub(hub, repo) == contents(out) and on_hub(hub, repo, "try/2") == contents(converted[1])
    assert not client.ask("push", converted[1], repo, revision="try/2")["found"]["changed"]


def test_a_pull_request_once(client, hub, out, converted, repo):
    assert "no repository" in client.ask("push", out, repo, create_pr=True)["refused"]
    client.ask("push", out, repo)
    client.ask("token", STRANGER)  # anybody may propose
    made = client.ask("push", converted[1], repo, create_pr=True)["found"]
    assert made["pull_request"] == f"{hub.endpoint}/{repo}/discussions/1"
    assert on_hub(hub, repo) == contents(out) and on_hub(hub, repo, "refs/pr/1") == contents(converted[1])
    again = client.ask("push", converted[1], repo, create_pr=True)["found"]
    assert again["pull_request"] == made["pull_request"] and "refs/pr/2" not in hub.store.about(repo)["refs"]
    assert "no branch 'nowhere'" in client.ask("push", out, repo, create_pr=True, revision="nowhere")["refused"]


def test_who_may_not_write_is_told_before_anything_is_sent(client, hub, out, repo):
    client.ask("token", None)
    assert "there is no token here; set HF_TOKEN" in client.ask("push", out, repo)["refused"]
    client.ask("token", READER)
    assert "may only read" in client.ask("push", out, repo)["refused"]
    client.ask("token", "hf_unheardOf")
    assert "answered 401; set HF_TOKEN to a token that may write" in client.ask("push", out, repo)["refused"]
    client.ask("token", STRANGER)
    said = client.ask("push", out, repo)["refused"]
    assert "org is neither else, whom the token belongs to" in said and "push to else/" in said
    hub.store.create(repo)
    assert "answered 403; set HF_TOKEN to a token that may write" in client.ask("push", out, repo)["refused"]
    assert not [line for line in hub.seen() if line.startswith(("POST", "PUT"))]
    assert "is no name of a repository" in client.ask("push", out, "just-a-name")["refused"]


def test_a_token_that_cannot_be_one_is_not_repeated(client, hub, out, repo):
    client.ask("token", "hf_mayWriteH\u20acre")
    refusals = [client.ask("push", out, repo)["refused"], client.ask("pull", repo)["refused"]]
    assert not [said for said in refusals if "mayWrite" in said or "\n" in said]


PUT, COMMIT = "PUT /_lfs/", "POST .*/commit/"
PUSH_FAULTS = {  # what goes wrong -> faults, what is said in the end, or None where it comes right
    "whoami 500 once": ([{"match": "whoami", "status": 500}], None),
    "whoami busy": ([{"match": "whoami", "status": 429, "headers": {"Retry-After": "99"}}], "try again in 99 s"),
    "create 500 once": ([{"match": "repos/create", "status": 500}], None),
    "create 403": ([{"match": "repos/create", "status": 403}], "answered 403; set HF_TOKEN"),
    "create answer lost": ([{"match": "repos/create", "swallow": True}], None),
    "preupload 500 once": ([{"match": "preupload", "status": 500}], None),
    "preupload 500 for ever": (
        [{"match": "preupload", "status": 500, **FOR_EVER}],
        "answered 500; run the same command again later",
    ),
    "batch 502 once": ([{"match": "objects/batch", "status": 502}], None),
    "upload reset once": ([{"match": PUT, "hang_up": 1000}], None),
    "upload reset for ever": ([{"match": PUT, "hang_up": 1000, **FOR_EVER}], "the connection to the hub broke off"),
    "upload 500 for ever": (
        [{"match": PUT, "status": 500, **FOR_EVER}],
        "answered 500; run the same command again later",
    ),
    "upload 403": ([{"match": PUT, "status": 403}], "answered 403; set HF_TOKEN"),
    "upload slow": ([{"match": PUT, "slow": 0.5}], None),
    "verify 500 once": ([{"match": "_lfs/verify", "status": 500}], None),
    "commit 500 once": ([{"match": COMMIT, "status": 500}], None),
    "commit 502 for ever": (
        [{"match": COMMIT, "status": 502, **FOR_EVER}],
        "answered 502; run the same command again later",
    ),
    "commit busy": ([{"match": COMMIT, "status": 429, "headers": {"Retry-After": "5"}}], None),
    "commit reset": ([{"match": COMMIT, "hang_up": 100}], None),
    "commit answer lost": ([{"match": COMMIT, "swallow": True}], None),
    "commit 403": ([{"match": COMMIT, "status": 403}], "answered 403; set HF_TOKEN"),
    "commit 409 once": ([{"match": COMMIT, "status": 409}], None),
    "commit 409 for ever": ([{"match": COMMIT, "status": 409, **FOR_EVER}], "somebody changed it in the meantime"),
    "somebody else commits": ([{"match": COMMIT, "meanwhile": "{repo}"}], "somebody changed it in the meantime"),
    "metadata 500 once": ([{"match": "validate-yaml", "status": 500}], None),
}


@pytest.mark.parametrize("what", PUSH_FAULTS)
def test_every_fault_of_a_push_ends_well_or_in_a_sentence(client, hub, converted, tmp_path, repo, what):
    faults, says = PUSH_FAULTS[what]
    out = unlike_any_other(converted[0], tmp_path / "out", repo)
    hub.faults(*json.loads(json.dumps(faults).replace("{repo}", repo)))
    said = client.ask("push", out, repo)
    if says is None:
        assert said["found"]["changed"] and on_hub(hub, repo) == contents(out), said
        assert len(hub.store.log(repo)) == 2  # one commit, whatever was lost
    else:
        assert says in said["refused"] and "\n" not in said["refused"]
        assert not any(repo in path.read_text() and on_hub(hub, repo).keys() & contents(out).keys()
                       for path in (hub.store.root / "repos").glob(f"{repo.replace('/', '--')}.json"))  # fmt: skip
    assert sum(said["waited"]) <= 60
    hub.faults()
    again = client.ask("push", out, repo, force="meanwhile" in str(faults))
    assert "found" in again and contents(out).items() <= on_hub(hub, repo).items()


def unlike_any_other(folder: Path, copy: Path, text: str) -> Path:
    """A copy with weights in a file of its own, so that they have to be uploaded."""
    shutil.copytree(folder, copy)
    mark(copy / "model.safetensors", text)
    return copy


def test_the_lost_answer_of_a_pull_request_makes_no_second_one(client, hub, out, converted, repo):
    client.ask("push", out, repo)
    hub.faults({"match": COMMIT, "swallow": True})
    made = client.ask("push", converted[1], repo, create_pr=True)["found"]
    assert made["pull_request"].endswith("/discussions/1") and "refs/pr/2" not in hub.store.about(repo)["refs"]


def test_a_hub_without_xet_is_told_how(client, hub, out, repo):
    pytest.importorskip("hf_xet")
    assert "set HF_HUB_DISABLE_XET=1" in client.ask("push", out, repo, xet=True)["refused"]
    assert "found" in client.ask("push", out, repo)
