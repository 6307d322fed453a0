"""A Hub on this machine: what huggingface_hub asks of the real one, answered over HTTP for one user.

Files are held in memory, every commit with its own tree; nothing is large, so every file is sent within its commit.
Tests look at what it holds (`files`), damage it, and have it break off (`commits_left`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_s3cr3tOfAnn"
USER = "ann"
Files = dict[str, bytes]


@dataclass
class Repository:
    """A data set: its branches, and the files of every commit."""

    private: bool = False
    gated: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        """Put files under a new commit."""
        sha = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit that a branch or a commit is."""
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class FakeHub:
    """What it holds, and how it misbehaves.

    Attributes:
        repositories: by "owner/name".
        may_write: whether its user may.
        commits_left: how many commits are taken before the rest is refused; None for all.
        sent: names of the files that came, in order.
        fetched: names of the files that were asked for.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    may_write: bool = True
    commits_left: int | None = None
    sent: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)

    def make(self, name: str, files: Files, *, private: bool = False) -> Repository:
        """A repository with files in it."""
        found = self.repositories[name] = Repository(private=private)
        found.commit("main", dict(files))
        return found

    def files(self, name: str, branch: str = "main") -> Files:
        """What a branch holds."""
        found = self.repositories[name]
        return found.commits[found.branches[branch]]


class Refused(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, said: str, code: str = "") -> None:
        super().__init__(said)
        self.status, self.code = status, code


class Server(ThreadingHTTPServer):
    """Says nothing of callers that hang up."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(hub: FakeHub) -> Iterator[str]:
    """Serve a Hub on the loopback; gives its address."""
    server = Server(("127.0.0.1", 0), _handler_of(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler_of(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *unused: object) -> None:
            """Say nothing."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            try:
                status, headers, content = 200, {}, _answers(hub, self, body)
                if isinstance(content, tuple):
                    headers, content = content
            except Refused as error:
                # As the Hub does not, but a proxy might: say who asked.
                said = f"{error} (asked with {self.headers.get('Authorization')})"
                status, content = error.status, json.dumps({"error": said}).encode()
                headers = {"X-Error-Message": said} | ({"X-Error-Code": error.code} if error.code else {})
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = _answer

    return Handler


def _answers(hub: FakeHub, request: BaseHTTPRequestHandler, body: bytes) -> Any:
    """What a request is answered: an object, bytes, or headers and bytes."""
    split = urlsplit(request.path)
    words = [unquote(word) for word in split.path.strip("/").split("/")]
    is_known = request.headers.get("Authorization") == f"Bearer {TOKEN}"
    match words:
        case ["api", "whoami-v2"]:
            if not is_known:
                raise Refused(401, "Invalid credentials")
            token = {"role": "write", "displayName": "laptop"}
            return {"name": USER, "orgs": [], "auth": {"accessToken": token}}
        case ["api", "agent-harnesses"]:  # the library wonders who calls it
            raise Refused(404, "Not here")
        case ["api", "validate-yaml"]:
            return {"warnings": [], "errors": []}
        case ["api", "repos", "create"]:
            return _create(hub, json.loads(body), f"http://{request.headers['Host']}")
        case ["api", "datasets", owner, name, *rest]:
            found = _of_api(hub, f"{owner}/{name}", rest, body, is_known=is_known, is_put=request.command == "PUT")
            if "commitOid" in found:
                found["commitUrl"] = (
                    f"http://{request.headers['Host']}/datasets/{owner}/{name}/commit/{found['commitOid']}"
                )
            return found
        case ["datasets", owner, name, "resolve", revision, *path]:
            assert not parse_qs(split.query).get("anything")
            return _resolve(hub, f"{owner}/{name}", revision, "/".join(path), fetches=request.command == "GET")
    raise AssertionError(f"nobody said what {request.command} {request.path} is answered")


def _create(hub: FakeHub, said: dict[str, Any], address: str) -> Any:
    name = f"{said.get('organization') or USER}/{said['name']}"
    if name in hub.repositories:
        raise Refused(409, "You already created this dataset repo")  # nobody asks twice
    private = said.get("private") or said.get("visibility") == "private"
    hub.make(name, {".gitattributes": b""}, private=bool(private))
    return {"url": f"{address}/datasets/{name}", "name": name, "id": name}


def _repository(hub: FakeHub, name: str) -> Repository:
    if name not in hub.repositories:
        raise Refused(404, "Repository not found", "RepoNotFound")
    return hub.repositories[name]


def _of_api(hub: FakeHub, name: str, rest: list[str], body: bytes, *, is_known: bool, is_put: bool) -> Any:
    found = _repository(hub, name)
    if found.private and not is_known:
        raise Refused(404, "Repository not found", "RepoNotFound")
    match rest:
        case [] | ["revision", _]:
            sha = found.at(rest[1] if rest else "main")
            if sha is None:
                raise Refused(404, "Revision not found", "RevisionNotFound")
            return {"id": name, "sha": sha, "private": found.private, "gated": found.gated or False}
        case ["auth-check", "write"]:
            if not hub.may_write:
                raise Refused(403, "Forbidden")
            return {}
        case ["settings"] if is_put:
            found.gated = json.loads(body)["gated"]
            return {}
        case ["branch", branch]:
            if branch in found.branches:
                raise Refused(409, "Reference already exists")
            found.branches[branch] = found.branches["main"]
            return {}
        case ["tree", revision]:
            sha = found.at(revision)
            if sha is None:
                raise Refused(404, "Revision not found", "RevisionNotFound")
            files = found.commits[sha].items()
            return [{"type": "file", "path": path, "size": len(data), "oid": _oid(data)} for path, data in files]
        case ["preupload", revision]:
            there = found.commits[found.at(revision) or ""]
            asked = [one["path"] for one in json.loads(body)["files"]]
            oids = {path: _oid(there[path]) if path in there else None for path in asked}
            return {
                "files": [
                    {"path": path, "uploadMode": "regular", "shouldIgnore": False, "oid": oids[path]} for path in asked
                ]
            }
        case ["commit", branch]:
            return _commit(hub, found, branch, [json.loads(line) for line in body.splitlines()])
    raise AssertionError(f"nobody said what {rest} of {name} is answered")


def _commit(hub: FakeHub, found: Repository, branch: str, lines: list[dict[str, Any]]) -> Any:
    if hub.commits_left == 0:
        raise Refused(400, "No more of this")
    hub.commits_left = None if hub.commits_left is None else hub.commits_left - 1
    files = dict(found.commits[found.branches[branch]])
    for line in lines:
        value, path = line["value"], line["value"].get("path", "")
        if line["key"] == "file":
            files[path] = base64.b64decode(value["content"])
            hub.sent.append(path)
        elif line["key"] == "deletedFile":
            del files[path]
    return {"commitOid": found.commit(branch, files)}


def _resolve(hub: FakeHub, name: str, revision: str, path: str, *, fetches: bool) -> Any:
    found = _repository(hub, name)
    if found.gated:
        raise Refused(403, "Access to this dataset is restricted", "GatedRepo")
    sha = found.at(revision)
    if sha is None or path not in found.commits[sha]:
        raise Refused(404, "Entry not found", "EntryNotFound")
    if fetches:
        hub.fetched.append(path)
    content = found.commits[sha][path]
    return {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": sha}, content


def _oid(content: bytes) -> str:
    """Of git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
