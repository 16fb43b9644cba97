"""A stand-in for the Hugging Face Hub: as much of its HTTP API as an upload and a download need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"  # noqa: S105 - of no hub


@dataclass
class Repository:
    private: bool | None
    heads: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """What it holds: repositories by name, the files of each commit, and large files by hash."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return self.commits[repository.heads.get(revision, revision)]

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> str:
        heads = self.repositories[name].heads
        files = dict(self.commits.get(heads.get(branch, ""), {}))
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "header":
                self.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert key == "lfsFile"
                files[value["path"]] = self.objects[value["oid"]]
        sha = hashlib.sha1(repr((name, branch, sorted(files.items()))).encode()).hexdigest()  # noqa: S324 - as git has it
        self.commits[sha] = files
        heads[branch] = sha
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int = 200, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.objects[hashlib.sha256(data).hexdigest()] = data
        self.answer()

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            given = json.loads(raw)
            name = "/".join(filter(None, (given.get("organization"), given["name"])))
            private = given.get("private") or given.get("visibility") == "private"
            if name in self.hub.repositories:
                self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
                return
            self.hub.repositories[name] = Repository(private)
            self.answer(body={"url": f"{self.hub.url}/{name}"})
        elif path == "/api/validate-yaml":
            self.answer(body={"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+?)/branch/(.+)", path):
            heads = self.hub.repositories[found[1]].heads
            heads.setdefault(found[2], heads.get("main", ""))
            self.answer()
        elif re.fullmatch(r"/api/models/(.+?)/preupload/(.+)", path):
            files = [{"path": f["path"], **_mode(f["path"])} for f in json.loads(raw)["files"]]
            self.answer(body={"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.hub.url}/put/{o['oid']}"}}}
                for o in json.loads(raw)["objects"]
            ]
            self.answer(body={"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/(.+?)/commit/(.+)", path):
            sha = self.hub.commit(found[1], found[2], [json.loads(line) for line in raw.splitlines()])
            self.answer(body={"commitOid": sha, "commitUrl": f"{self.hub.url}/{found[1]}/commit/{sha}"})
        else:
            self.answer(404, {"error": f"the stand-in knows no {path}"})

    def do_GET(self) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None:  # what is asked of a repository that may not be made
            self.answer(401, X_Error_Code="RepoNotFound")
            return
        name, revision, file = found.groups()
        repository = self.hub.repositories.get(name)
        seen = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not seen):
            self.answer(404 if seen else 401, X_Error_Code="RepoNotFound")
            return
        sha = repository.heads.get(revision, revision)
        if sha not in self.hub.commits:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif file not in self.hub.commits[sha]:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        else:
            data = self.hub.commits[sha][file]
            self.answer(body=data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=sha)

    do_HEAD = do_GET  # noqa: N815 - http.server's name


def _mode(path: str) -> dict[str, Any]:
    return {"uploadMode": "regular" if path.endswith(".md") else "lfs", "shouldIgnore": False}


@contextmanager
def hub() -> Iterator[Hub]:
    """The stand-in, on a port of its own."""
    state = Hub()
    handler = type("Handler", (_Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
