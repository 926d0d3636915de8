"""A folder or a hub id, and a sentence for every way neither works.  What can go wrong on the way: test_hub.py."""

import hub_client
import layouts
import pytest

from sparsify.converters import Source, resolve
from sparsify.converters.hub.download import git_oid_of, needed
from sparsify.converters.tensors import read_tensors
from sparsify.storage.tensors import fingerprint

NOWHERE = "http://127.0.0.1:9"


def test_repositories_are_pinned_and_stay_readable_without_a_network(hub, tmp_path):
    marks, commits = {}, {}
    for name, layout in (("safe", "hf"), ("pickled", "raw checkpointed")):
        folder = layouts.write(tmp_path / name, layout)
        commits[name] = hub.store.create(f"org/{name}", {file.name: file.read_bytes() for file in folder.iterdir()})
        marks[name] = fingerprint(read_tensors(folder))
    asked = [("org/safe", None), ("org/pickled", commits["pickled"])]
    with hub_client.running(hub.environment(tmp_path / "home"), tmp_path / "log") as online:
        found = [online.ask("pull", *question)["found"] for question in asked]
        assert "has no revision 'v99'" in online.ask("pull", "org/safe", "v99")["refused"]
        assert "neither a folder org/missing here nor a public" in online.ask("pull", "org/missing")["refused"]
    for it, name in zip(found, marks, strict=True):
        assert it["name"] == it["repo"] == f"org/{name}"
        assert (it["revision"], it["sha256"]) == (commits[name], marks[name])
    environment = hub.environment(tmp_path / "home", HF_ENDPOINT=NOWHERE)
    with hub_client.running(environment, tmp_path / "log") as offline:
        assert [offline.ask("pull", *question)["found"] for question in asked] == found
        new, write = offline.ask("pull", "org/new"), offline.ask("check", "org/new")
    assert "org/new is not a folder here, and the hub cannot be reached" in new["refused"] and new["waited"] == []
    assert "org/new could not be written: the hub cannot be reached" in write["refused"] and write["waited"] == []
    said = f"org/safe is read from the hub's cache, commit {commits['safe']}: the hub cannot be reached\n"
    assert said in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("names", "weights"),
    [
        (["model.safetensors", "model.fp16.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["model.safetensors", "plan.safetensors"], ["model.safetensors", "plan.safetensors"]),
        (["a-1.safetensors", "a-2.safetensors", "a.safetensors.index.json"], None),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], ["pytorch_model.bin"]),
        (["pytorch_model-1.bin", "pytorch_model-2.bin", "pytorch_model.bin.index.json"], None),
        (["weights.ckpt", "last.ckpt"], ["weights.ckpt"]),
        (["config.json/../../x.safetensors", "../model.safetensors", "/model.safetensors", "a\\b.safetensors"], []),
    ],
)
def test_needed(names, weights):
    """One kind of weights, and those by their usual name if there are any; None stands for all of them."""
    texts = ["README.md", "config.json", "tokenizer.json"]
    others = ["modeling_x.py", "report.json", "data/config.json", "picture.png", ".gitattributes"]
    assert needed([*names, *texts, *others]) == sorted([*texts, *(names if weights is None else weights)])


def test_git_names_contents_like_this(tmp_path):
    (tmp_path / "file").write_bytes(b"test content\n")
    assert git_oid_of(tmp_path / "file") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"  # the example of the git book


def test_a_folder(tmp_path):
    source = resolve(tmp_path)
    assert source == Source(str(tmp_path), tmp_path.resolve()) and source.repo is source.revision is None


def test_a_folder_has_no_revisions(tmp_path):
    with pytest.raises(ValueError, match="is a folder here, and revision 'main' belongs to the hub"):
        resolve(tmp_path, revision="main")


def test_a_file_is_not_its_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file; pass the folder"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize("src", ["no/such/folder", "nothing", "./model", "../model", "org/name/", "~/nothing"])
def test_neither_a_folder_nor_a_hub_id(src):
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a hub id"):
        resolve(src)
