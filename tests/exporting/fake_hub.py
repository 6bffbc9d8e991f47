"""A hub on this machine: the part of the Hugging Face hub's HTTP protocol that its library uses to
make a repository, to upload files (plain and LFS), and to list and download them.

Written after the requests of `huggingface_hub` itself; what the real hub adds (Xet, quotas, checks
of cards) is not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


@dataclass
class Repository:
    """Commits in order: (id, message, all files by path)."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2] if self.commits else {}

    def add(self, message: str, files: dict[str, bytes]) -> str:
        """A commit that adds or replaces files; returns its id."""
        commit = hashlib.sha1(f"{len(self.commits)}{message}".encode()).hexdigest()
        self.commits.append((commit, message, {**self.files(), **files}))
        return commit

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        for commit, _, files in reversed(self.commits):
            if revision in ("main", commit):
                return commit, files
        return None


class FakeHub:
    """`repositories` by name; `requests` are (method, path) of all that came, in order."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            self._describe(found[1], found[2] or "revision", found[3] or "main")
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], found[3])
        else:
            self._say(404, {"error": "no such page"})

    def _describe(self, name: str, what: str, revision: str) -> None:
        state = self._state(name, revision)
        if state is None:
            return
        commit, files = state
        if what == "tree":
            self._say(200, [_entry(path, content) for path, content in files.items()])
            return
        self._say(
            200,
            {
                "id": name,
                "sha": commit,
                "private": self.hub.repositories[name].private,
                "siblings": [{"rfilename": path} for path in files],
            },
        )

    def _state(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._say(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        state = repository.at(revision)
        if state is None:
            self._say(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
        return state

    def _file(self, name: str, revision: str, path: str) -> None:
        state = self._state(name, revision)
        if state is None:
            return
        commit, files = state
        if path not in files:
            self._say(404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[path]
        etag = hashlib.sha256(content).hexdigest()
        self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{etag}"'})

    def do_PUT(self) -> None:
        self.hub.requests.append(("PUT", self.path))
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._send(200, b"", {})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(("POST", path))
        body = self._body()
        if path == "/api/validate-yaml":
            self._say(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._say(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization")
            name = f"{owner}/{asked['name']}" if owner else asked["name"]
            private = asked.get("visibility") == "private"
            self.hub.repositories.setdefault(name, Repository(private))
            self._say(200, {"url": f"{self.hub.url}/{name}"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            self._say(200, {"files": [_mode(one) for one in json.loads(body)["files"]]})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [self._upload(one) for one in json.loads(body)["objects"]]
            self._say(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(found[1], body)
        else:
            self._say(404, {"error": "no such page"})

    def _upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.hub.url}/lfs/{asked['oid']}"
        return {**asked, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, name: str, body: bytes) -> None:
        message, files = "", {}
        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            else:
                raise AssertionError(f"an operation that is not known: {entry['key']}")
        commit = self.hub.repositories[name].add(message, files)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._say(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _say(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(
            status,
            json.dumps(content).encode(),
            {"Content-Type": "application/json", **(headers or {})},
        )

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(asked: dict[str, Any]) -> dict[str, Any]:
    large = asked["path"].endswith((".safetensors", ".onnx"))
    mode = "lfs" if large else "regular"
    return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": blob}
