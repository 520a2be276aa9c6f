"""A server that speaks the hub's protocol: revisions, trees and files of data sets and models, uploads of models."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from typing import Any
from urllib.parse import unquote

from tests.support.hub_uploads import Uploads

Files = dict[str, bytes]
_API = re.compile(r"/api/(?:datasets|models)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/?]+)(?:/([^?]*))?)?")
_FILE = re.compile(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)")


@dataclass
class Hub:
    """Data sets and models by name: the files of each commit, and the commits of branches and tags."""

    commits: dict[str, dict[str, Files]] = field(default_factory=dict)
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    """What requests said in `Authorization`."""
    url: str = ""
    uploads: Uploads = field(default_factory=Uploads)

    def push(self, name: str, files: Files, ref: str = "main") -> str:
        """Make a commit of these files alone, and let the branch or tag stand for it; the commit."""
        commits = self.commits.setdefault(name, {})
        commit = hashlib.sha1(f"{name} {len(commits)}".encode(), usedforsecurity=False).hexdigest()
        commits[commit] = files
        self.refs.setdefault(name, {})[ref] = commit
        return commit

    def found(self, name: str, revision: str) -> tuple[str, Files] | None:
        """The commit that a revision is, and its files."""
        commit = self.refs.get(name, {}).get(revision, revision)
        files = self.commits.get(name, {}).get(commit)
        return None if files is None else (commit, files)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """An empty hub at a local port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    return {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data, usedforsecurity=False).hexdigest(),
    }


def _tree(files: Files, inside: str, *, whole: bool) -> list[dict[str, Any]]:
    """What stands in a folder, and in its folders if `whole`."""
    below = {path: data for path, data in files.items() if path.startswith(inside)}
    parents = {str(parent) for path in below for parent in PurePosixPath(path).parents} - {".", inside.rstrip("/")}
    entries = [_entry(path, data) for path, data in below.items()]
    entries += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(parents)]
    return [entry for entry in entries if whole or "/" not in entry["path"][len(inside) :]]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        path = unquote(self.path)
        if match := _API.match(path):
            self._api(match[1], match[2] or "revision", match[3] or "main", match[4] or "", b"")
        elif match := _FILE.match(path):
            self._file(match[1], match[2], match[3])
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        body = self._body()
        if answer := self.hub.uploads.answer(self.hub.url, unquote(self.path).partition("?")[0], body):
            self._json(answer[1], status=answer[0])
            return
        match = _API.match(unquote(self.path))
        assert match
        self._api(match[1], match[2], match[3], match[4] or "", body)

    def do_PUT(self) -> None:
        self.hub.uploads.put(self.path, self._body())
        self._send(200, b"", {})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _api(self, name: str, verb: str, revision: str, folder: str, body: bytes) -> None:
        found = self.hub.found(name, revision)
        if found is None:
            known = name in self.hub.commits
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
            return
        commit, files = found
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False})
        elif verb == "tree":
            whole = "recursive=true" in self.path.lower()
            self._json(_tree(files, f"{folder.rstrip('/')}/" if folder else "", whole=whole))
        else:
            asked = (
                json.loads(body)["paths"]
                if body.startswith(b"{")
                else re.findall(r"paths=([^&]+)", unquote(body.decode()))
            )
            self._json([_entry(path, files[path]) for path in asked if path in files])

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self.hub.found(name, revision)
        if found is None or path not in found[1]:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound" if found else "RevisionNotFound"})
            return
        data = found[1][path]
        etag = {"ETag": f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"', "X-Repo-Commit": found[0]}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
            self._send(206, data[first : last + 1], etag | span)
        else:
            self._send(200, data, etag)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Nothing is logged."""
