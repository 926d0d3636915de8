"""A hub on this machine: what the real huggingface_hub asks of huggingface.co, with faults on demand.

`python tests/support/hub_server.py FOLDER` serves until it is killed and prints its address first.  All is kept in
FOLDER, as git would: contents by their hash, commits with their parent, branches by name.  Standard library only.

A fault is a dictionary: `match`, a regular expression on "METHOD /path?query"; `times`, how many such requests it
meets; and what then happens, any of

    status, headers, code   answer this instead; `code` is what the hub calls the error (X-Error-Code)
    slow                    wait so many seconds first
    cut                     of a body promise all, send so many bytes, and close; with `reset`, reset the connection
    flip                    change one byte of the body
    change                  headers to send instead of the true ones
    hang_up                 of an upload read so many bytes, then reset the connection
    swallow                 do what was asked, and reset the connection instead of answering
    meanwhile               let somebody else commit a file to this repository first
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER, STRANGER = "hf_mayWriteHere", "hf_mayReadOnly", "hf_isSomebodyElse"
TOKENS = {  # token: who is known by it, and what it may do
    WRITER: {"name": "me", "orgs": ["org"], "role": "write"},
    READER: {"name": "me", "orgs": ["org"], "role": "read"},
    STRANGER: {"name": "else", "orgs": [], "role": "write"},
}
LFS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".png")  # what the hub keeps outside git
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
Json = dict[str, Any]


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        super().__init__(status, code, message)
        self.status, self.code, self.body = status, code, {"error": message, **more}


def git_oid(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Store:
    """Repositories in a folder; also the way for tests to look at them, and to put into them what no client would."""

    def __init__(self, root: Path) -> None:
        self.root, self.lock = root, threading.RLock()
        for name in ("objects", "repos"):
            (root / name).mkdir(parents=True, exist_ok=True)

    # contents

    def keep(self, content: bytes) -> str:
        """The sha256 that `content` can be had by from now on."""
        sha256 = hashlib.sha256(content).hexdigest()
        write_whole(self.root / "objects" / sha256, content)
        return sha256

    def has(self, sha256: str) -> bool:
        return (self.root / "objects" / sha256).is_file()

    def content(self, entry: Json) -> bytes:
        return (self.root / "objects" / entry["sha256"]).read_bytes()

    def entry(self, path: str, sha256: str) -> Json:
        """A file of a commit: what git calls it, its size, and whether it lies outside git."""
        content = (self.root / "objects" / sha256).read_bytes()
        lfs = path.endswith(LFS)
        in_git = POINTER.format(sha256, len(content)).encode() if lfs else content
        return {"oid": git_oid(in_git), "size": len(content), "sha256": sha256, "lfs": lfs}

    # repositories

    def about(self, repo: str) -> Json:
        try:
            return json.loads((self.root / "repos" / f"{repo.replace('/', '--')}.json").read_bytes())
        except FileNotFoundError:
            raise Refused(404, "RepoNotFound", "Repository not found") from None

    def save(self, repo: str, about: Json) -> None:
        write_whole(self.root / "repos" / f"{repo.replace('/', '--')}.json", json.dumps(about).encode())

    def create(self, repo: str, files: Mapping[str, bytes] | None = None, **about: Any) -> str:
        """A new repository with one commit of these files, as the hub itself begins one; its sha."""
        with self.lock:
            self.save(repo, {"private": False, "gated": False, "refs": {}, "commits": {}, **about})
            begun = {".gitattributes": b"*.safetensors filter=lfs\n", **(files or {})}
            return self.commit(repo, "main", {path: self.keep(content) for path, content in begun.items()}, "begin")

    def commit(
        self, repo: str, ref: str, add: Mapping[str, str], message: str, delete: Iterator[str] | tuple[str, ...] = ()
    ) -> str:
        """The sha of a new commit on top of `ref`.  add: path -> sha256."""
        with self.lock:
            about = self.about(repo)
            parent = about["refs"].get(ref)
            gone = set(delete)
            files = {p: e for p, e in (about["commits"][parent]["files"] if parent else {}).items() if p not in gone}
            files |= {path: self.entry(path, sha256) for path, sha256 in add.items()}
            commit = {"parent": parent, "message": message, "files": files, "number": len(about["commits"])}
            sha = hashlib.sha1(json.dumps(commit, sort_keys=True).encode()).hexdigest()
            about["commits"][sha], about["refs"][ref] = commit, sha
            self.save(repo, about)
            return sha

    def resolve(self, repo: str, revision: str) -> str:
        """The commit that a branch, a pull request or a commit stands for."""
        about = self.about(repo)
        sha = about["refs"].get(revision, revision)
        if sha not in about["commits"]:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, Json]:
        return self.about(repo)["commits"][self.resolve(repo, revision)]["files"]

    def log(self, repo: str, revision: str = "main") -> list[str]:
        """Messages, newest first."""
        commits, sha, messages = self.about(repo)["commits"], self.resolve(repo, revision), []
        while sha:
            messages.append(commits[sha]["message"])
            sha = commits[sha]["parent"]
        return messages


def write_whole(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{threading.get_ident()}")
    beside.write_bytes(content)
    beside.replace(path)


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []
REPO = r"(?P<repo>[^/]+/[^/]+)"


def route(method: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def keep(answer: Callable[..., None]) -> Callable[..., None]:
        ROUTES.append((method, re.compile(pattern.replace("REPO", REPO)), answer))
        return answer

    return keep


class Handler(BaseHTTPRequestHandler):
    """One connection.  `store`, `faults` and `seen` belong to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement of its headers
    store: Store
    faults: list[Json]
    seen: list[str]

    def answer(self) -> None:
        self.path = re.sub("^https?://[^/]+", "", self.path)
        self.url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(self.url.query).items()}
        self.taken: bytes | None = None
        if self.url.path.startswith("/_control/"):
            return self.control()
        self.fault = self.met()
        self.seen.append(" ".join([self.command, self.path, *filter(None, [self.headers.get("Range")])]))
        time.sleep(self.fault.get("slow", 0))
        try:
            if (limit := self.fault.get("hang_up")) is not None:
                self.rfile.read(limit)
                return self.reset()
            self.body()
            if repo := self.fault.get("meanwhile"):
                self.store.commit(repo, "main", {"theirs.txt": self.store.keep(b"theirs")}, "somebody else")
            if status := self.fault.get("status"):
                raise Refused(status, self.fault.get("code", ""), "as the fault has it")
            self.dispatch()
        except Refused as refused:
            named = {"X-Error-Code": refused.code} if refused.code else {}
            self.send(refused.status, refused.body, named)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def dispatch(self) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, handle in ROUTES:
            if wanted == method and (match := pattern.fullmatch(self.url.path)):
                found = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                return handle(self, **found)
        raise Refused(404, "", f"no such page: {self.command} {self.url.path}")

    def met(self) -> Json:
        """The fault this request meets, or an empty one."""
        asked = f"{self.command} {self.path}"
        for fault in self.faults:
            if fault["times"] > 0 and re.search(fault["match"], asked):
                fault["times"] -= 1
                return fault
        return {}

    def control(self) -> None:
        if self.command == "POST":
            self.faults[:], self.seen[:] = json.loads(self.body()), []
        self.send(200, {"seen": self.seen, "faults": self.faults})

    # in

    def body(self) -> bytes:
        if self.taken is None:
            self.taken = self.read_body()
        return self.taken

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def who(self) -> Json | None:
        """Who asks, None for anybody; a token that nobody has is refused."""
        if not (header := self.headers.get("Authorization")):
            return None
        if (person := TOKENS.get(header.removeprefix("Bearer "))) is None:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        return person

    def check(self, repo: str, write: bool = False, files: bool = False) -> None:
        """Refuse who may not see the repository, write to it, or read the files of a gated one."""
        person, about = self.who(), self.store.about(repo)
        owner = person is not None and repo.split("/")[0] in (person["name"], *person["orgs"])
        if about["private"] and not owner:
            raise Refused(404 if person else 401, "RepoNotFound", "Repository not found")
        if files and about["gated"] and not owner:
            raise Refused(403 if person else 401, "GatedRepo", "Access to this model is restricted")
        if write and (person is None or not owner or person["role"] != "write"):
            raise Refused(403 if person else 401, "", "You have no right to write here")

    # out

    def send(self, status: int, body: Json | list[Json] | bytes, headers: Mapping[str, str] | None = None) -> None:
        fault = getattr(self, "fault", {})
        if fault.get("swallow") and status < 400:
            return self.reset()
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        known = {"Content-Type": "application/octet-stream" if isinstance(body, bytes) else "application/json"}
        known |= {"Content-Length": str(len(content)), **(headers or {}), **fault.get("headers", {})}
        known |= fault.get("change", {})
        self.send_response(status)
        for name, value in known.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.get("flip"):
            content = content[:-1] + bytes([content[-1] ^ 1])
        cut = fault.get("cut")
        self.wfile.write(content[:cut] if cut is not None else content)
        if cut is not None:
            self.wfile.flush()
            if fault.get("reset"):
                return self.reset()
            self.close_connection = True

    def reset(self) -> None:
        """Close so that the other side sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RD)
        self.close_connection = True
        self.connection.close()
        self.rfile.close()

    def finish(self) -> None:
        with suppress(OSError, ValueError):  # the other side is gone, or we hung up
            super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def siblings(self, repo: str, sha: str) -> list[Json]:
        return [
            {"rfilename": path, "size": e["size"], "blobId": e["oid"], **lfs(e, "sha256")}
            for path, e in self.store.files(repo, sha).items()
        ]


def lfs(entry: Json, name: str) -> Json:
    """How a listing tells that a file lies outside git; `name` of its hash differs from listing to listing."""
    if not entry["lfs"]:
        return {}
    return {"lfs": {name: entry["sha256"], "size": entry["size"], "pointerSize": 134}}


# --- accounts and repositories --------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def whoami(hub: Handler) -> None:
    if (person := hub.who()) is None:
        raise Refused(401, "", "Invalid username or password.")
    orgs = [{"name": org, "type": "org"} for org in person["orgs"]]
    token = {"accessToken": {"displayName": "test", "role": person["role"]}}
    hub.send(200, {"type": "user", "name": person["name"], "orgs": orgs, "auth": {"type": "access_token", **token}})


@route("POST", "/api/validate-yaml")
def validate(hub: Handler) -> None:
    hub.send(200, {"errors": [], "warnings": []})


@route("POST", "/api/repos/create")
def create(hub: Handler) -> None:
    asked, person = json.loads(hub.body()), hub.who()
    owner = asked.get("organization") or (person or {}).get("name")
    if person is None or owner not in (person["name"], *person["orgs"]) or person["role"] != "write":
        raise Refused(403 if person else 401, "", f"You have no right to create a model under the namespace {owner}")
    repo = f"{owner}/{asked['name']}"
    url = f"{hub.server.address}/{repo}"
    with hub.store.lock:
        try:
            hub.store.about(repo)
        except Refused:
            private = asked.get("private") is True or asked.get("visibility") == "private"
            hub.store.create(repo, private=private)
            return hub.send(200, {"url": url, "name": repo, "id": repo})
    raise Refused(409, "", "You already created this model repo", url=url)


@route("GET", "/api/models/REPO/auth-check(?P<write>/write)?")
def auth_check(hub: Handler, repo: str, write: str | None = None) -> None:
    hub.check(repo, write=write is not None, files=True)
    hub.send(200, {})


@route("GET", "/api/models/REPO")
def repository(hub: Handler, repo: str) -> None:
    revision(hub, repo, "main")


@route("GET", "/api/models/REPO/revision/(?P<rev>[^/]+)")
def revision(hub: Handler, repo: str, rev: str) -> None:
    hub.check(repo)
    about, sha = hub.store.about(repo), hub.store.resolve(repo, rev)
    listed = hub.siblings(repo, sha)
    if "blobs" not in hub.query:
        listed = [{"rfilename": sibling["rfilename"]} for sibling in listed]
    known = {"private": about["private"], "gated": "manual" if about["gated"] else False}
    hub.send(200, {"_id": "0", "id": repo, "modelId": repo, "sha": sha, **known, "tags": [], "siblings": listed})


@route("GET", "/api/models/REPO/refs")
def refs(hub: Handler, repo: str) -> None:
    hub.check(repo)
    kinds: dict[str, list[Json]] = {"branches": [], "pullRequests": [], "tags": [], "converts": []}
    for name, sha in hub.store.about(repo)["refs"].items():
        pull = name.startswith("refs/pr/")
        full = name if pull else f"refs/heads/{name}"
        kinds["pullRequests" if pull else "branches"].append({"name": name, "ref": full, "targetCommit": sha})
    hub.send(200, kinds)


@route("POST", "/api/models/REPO/branch/(?P<branch>[^/]+)")
def branch(hub: Handler, repo: str, branch: str) -> None:
    hub.check(repo, write=True)
    with hub.store.lock:
        about = hub.store.about(repo)
        if branch in about["refs"]:
            raise Refused(409, "", "Reference already exists")
        about["refs"][branch] = hub.store.resolve(repo, json.loads(hub.body() or b"{}").get("startingPoint", "main"))
        hub.store.save(repo, about)
    hub.send(200, {})


# --- reading --------------------------------------------------------------------------------------------------------


@route("GET", "/api/models/REPO/tree/(?P<rev>[^/]+)")
def tree(hub: Handler, repo: str, rev: str) -> None:
    hub.check(repo)
    files = hub.store.files(repo, rev).items()
    hub.send(200, [{"type": "file", "path": p, "size": e["size"], "oid": e["oid"], **lfs(e, "oid")} for p, e in files])


@route("GET", "/REPO/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def download(hub: Handler, repo: str, rev: str, path: str) -> None:
    hub.check(repo, files=True)
    sha = hub.store.resolve(repo, rev)
    if (entry := hub.store.files(repo, sha).get(path)) is None:
        hub.fault = {**hub.fault, "headers": {"X-Repo-Commit": sha}}
        raise Refused(404, "EntryNotFound", f"{path} does not exist on {rev}")
    content = hub.store.content(entry)
    headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
    if entry["lfs"]:
        headers |= {"X-Linked-ETag": f'"{entry["sha256"]}"', "X-Linked-Size": str(entry["size"])}
        headers["ETag"] = f'"{entry["sha256"]}"'
    if match := re.fullmatch(r"bytes=(\d+)-(\d*)", hub.headers.get("Range", "")):
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        part = content[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return hub.send(206, part, headers)
    hub.send(200, content, headers)


# --- writing --------------------------------------------------------------------------------------------------------


@route("POST", "/api/models/REPO/preupload/(?P<rev>[^/]+)")
def preupload(hub: Handler, repo: str, rev: str) -> None:
    hub.check(repo, write="create_pr" not in hub.query)
    there = hub.store.files(repo, rev)

    def told(file: Json) -> Json:
        entry = there.get(file["path"])
        known = (entry["sha256"] if entry["lfs"] else entry["oid"]) if entry else None
        mode = "lfs" if file["path"].endswith(LFS) else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known}

    hub.send(200, {"files": [told(file) for file in json.loads(hub.body())["files"]]})


@route("POST", r"/REPO\.git/info/lfs/objects/batch")
def lfs_batch(hub: Handler, repo: str) -> None:
    hub.check(repo)

    def told(file: Json) -> Json:
        if hub.store.has(file["oid"]):
            return file
        actions = {"upload": {"href": f"{hub.server.address}/_lfs/{file['oid']}"}}
        return {**file, "actions": actions | {"verify": {"href": f"{hub.server.address}/_lfs/verify"}}}

    hub.send(200, {"transfer": "basic", "objects": [told(file) for file in json.loads(hub.body())["objects"]]})


@route("PUT", "/_lfs/(?P<sha256>[0-9a-f]{64})")
def lfs_put(hub: Handler, sha256: str) -> None:
    if hashlib.sha256(hub.body()).hexdigest() != sha256:
        raise Refused(400, "", "the content does not have this hash")
    hub.store.keep(hub.body())
    hub.send(200, {})


@route("POST", "/_lfs/verify")
def lfs_verify(hub: Handler) -> None:
    if not hub.store.has(json.loads(hub.body())["oid"]):
        raise Refused(404, "", "no such object")
    hub.send(200, {})


@route("POST", "/api/models/REPO/commit/(?P<rev>[^/]+)")
def commit(hub: Handler, repo: str, rev: str) -> None:
    pull = "create_pr" in hub.query
    hub.check(repo, write=not pull)
    lines = [json.loads(line) for line in hub.body().splitlines()]
    header, add, delete = lines[0]["value"], {}, []
    with hub.store.lock:
        head, there = hub.store.resolve(repo, rev), hub.store.files(repo, rev)
        parent = header.get("parentCommit", head)
        if parent != head and not pull:
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        for line in lines[1:]:
            kind, value = line["key"], line["value"]
            if kind == "file":
                add[value["path"]] = hub.store.keep(base64.b64decode(value["content"]))
            elif kind == "lfsFile" and hub.store.has(value["oid"]):
                add[value["path"]] = value["oid"]
            elif kind == "deletedFile" and value["path"] in there:
                delete.append(value["path"])
            else:
                raise Refused(400, "", f"{kind} of {value['path']} cannot be done")
        if pull:
            about = hub.store.about(repo)
            rev = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in about['refs'])}"
            about["refs"][rev] = parent
            hub.store.save(repo, about)
        sha = hub.store.commit(repo, rev, add, header["summary"], delete=tuple(delete))
    page = f"{hub.server.address}/{repo}"
    made = {"success": True, "commitOid": sha, "commitUrl": f"{page}/commit/{sha}", "hookOutput": ""}
    hub.send(200, made | ({"pullRequestUrl": f"{page}/discussions/{rev.rpartition('/')[2]}"} if pull else {}))


# --- running it -----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    daemon_threads = True
    address: str

    def handle_error(self, *_: Any) -> None:
        """A client that was killed, or reset, is no news."""


def serve(root: Path) -> None:
    handler = type("Bound", (Handler,), {"store": Store(root), "faults": [], "seen": []})
    server = Server(("127.0.0.1", 0), handler)
    server.address = f"http://127.0.0.1:{server.server_port}"
    print(server.address, flush=True)
    server.serve_forever()


@dataclass(frozen=True)
class LocalHub:
    """A hub that runs: where, and what lies in it."""

    endpoint: str
    store: Store

    def faults(self, *faults: Json) -> None:
        """From now on these faults; forgets what was asked so far.  A fault is met once unless it says `times`."""
        self.control(json.dumps([{"times": 1, **fault} for fault in faults]).encode())

    def seen(self) -> list[str]:
        """What was asked since `faults`, as "METHOD /path?query"."""
        return self.control(None)["seen"]

    def control(self, content: bytes | None) -> Json:
        with urllib.request.urlopen(f"{self.endpoint}/_control/", data=content, timeout=30) as answer:
            return json.load(answer)

    def environment(self, home: Path, token: str | None = WRITER, **more: str) -> dict[str, str]:
        """The environment of a client of this hub, with its cache in `home`."""
        others = ("HF_", "HUGGING", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(others)}
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        known = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), **({"HF_TOKEN": token} if token else {})}
        return {**kept, **quiet, **known, **more}


@contextmanager
def running(root: Path) -> Iterator[LocalHub]:
    """A hub in a process of its own, its repositories in `root`."""
    command = [sys.executable, __file__, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield LocalHub(process.stdout.readline().strip(), Store(root))
        finally:
            process.kill()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
