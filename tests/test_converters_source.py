"""A folder or a hub id, and a sentence for every way neither works.

The hub is a small server on this machine that knows the few requests of a download.  The client is the real one, in
processes of its own because it reads its settings when it is imported.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import layouts
import pytest

from sparsify.converters import Source, resolve
from sparsify.converters.tensors import read_tensors
from sparsify.stored import fingerprint

ROOT = Path(__file__).resolve().parent.parent
NOWHERE = "http://127.0.0.1:9"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
ERRORS = {  # repository: status, what the hub calls it
    "org/missing": (404, "RepoNotFound"),
    "org/gated": (403, "GatedRepo"),
    "org/private": (401, ""),
    "org/forbidden": (403, ""),
    "org/broken": (500, ""),
}


class Hub(BaseHTTPRequestHandler):
    """Repositories are the folders org/name below `root`; `wanted` collects the files that were asked for."""

    root: Path
    wanted: list[str]

    def do_GET(self):
        path = self.path.split("?")[0].strip("/")
        api = path.startswith("api/models/")
        repo, _, rest = path.removeprefix("api/models/").partition("/")
        name, _, rest = rest.partition("/")
        repo = f"{repo}/{name}"
        folder = self.root / repo
        if repo in ERRORS or not folder.is_dir():
            status, code = ERRORS.get(repo, (404, "RepoNotFound"))
            return self.answer(status, b"", {"X-Error-Code": code})
        if api and rest.startswith("revision/"):
            if rest not in ("revision/main", "revision/v1", f"revision/{COMMIT}"):
                return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return self.answer(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode())
        if api and rest.startswith("tree/"):
            files = [f for f in folder.rglob("*") if f.is_file()]
            listing = [
                {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": f.name}
                for f in files
            ]
            return self.answer(200, json.dumps(listing).encode())
        file = rest.removeprefix(f"resolve/{COMMIT}/")
        self.wanted.append(file)
        return self.answer(200, (folder / file).read_bytes(), {"X-Repo-Commit": COMMIT, "ETag": f'"{file}"'})

    do_HEAD = do_GET

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Serves org/safe (safetensors beside a pickle) and org/pickled (Lightning); yields the handler class."""
    root = tmp_path_factory.mktemp("hub")
    handler = type("Handler", (Hub,), {"root": root, "wanted": []})
    safe = layouts.write(root / "org" / "safe", "hf")
    (safe / "modeling_hyena.py").write_text("raise SystemExit('remote code was run')")
    (safe / "pytorch_model.bin").write_bytes(b"never asked for")
    (safe / "plan.safetensors").write_bytes(b"coefficients of a plan")
    (safe / "checkpoint-7").mkdir()
    (safe / "checkpoint-7" / "model.safetensors").write_bytes(b"never asked for")
    pickled = layouts.write(root / "org" / "pickled", "raw checkpointed")
    (pickled / "plan.safetensors").write_bytes(b"coefficients of a plan")
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


def ask(endpoint, home, *questions):
    """For every (src, revision): what `resolve` and the reader found, or the sentence they refused with."""
    script = """
import json, sys, sparsify
from sparsify.converters import resolve
from sparsify.converters.tensors import read_tensors
from sparsify.stored import fingerprint
answers = []
for src, revision in json.loads(sys.argv[1]):
    try:
        source = resolve(src, revision)
        answers.append([source.name, source.repo, source.revision, fingerprint(read_tensors(source.folder))])
    except (LookupError, ValueError, FileNotFoundError) as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **quiet, "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-c", script, json.dumps(questions)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_repositories_are_pinned_and_stay_readable_offline(hub, tmp_path):
    questions = [("org/safe", None), ("org/pickled", "v1")]
    safe, pickled = ask(hub.endpoint, tmp_path, *questions)
    for found, name in ((safe, "safe"), (pickled, "pickled")):
        mark = fingerprint(read_tensors(hub.root / "org" / name))
        assert found == [f"org/{name}", f"org/{name}", COMMIT, mark]
    wanted = ["config.json", "model.safetensors", "plan.safetensors", "weights.ckpt"]  # no code, no leftovers
    assert sorted(set(hub.wanted)) == wanted
    *again, new = ask(NOWHERE, tmp_path, *questions, ("org/new", None))
    assert again == [safe, pickled]
    assert "org/new is not a folder here, and the hub cannot be reached" in new and "cache" in new


def test_what_the_hub_refuses(hub, tmp_path):
    expected = {
        ("org/missing", None): "neither a folder org/missing here nor a public repository",
        ("org/private", None): "set HF_TOKEN",
        ("org/gated", None): "org/gated is gated; ask for access",
        ("org/forbidden", None): "the hub answered 403; set HF_TOKEN",
        ("org/broken", None): "the hub answered 500; try again later",
        ("org/safe", "v99"): "org/safe has no revision 'v99'",
    }
    for said, says in zip(ask(hub.endpoint, tmp_path, *expected), expected.values(), strict=True):
        assert says in said and "\n" not in said


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
