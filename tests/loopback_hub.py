"""A small server that speaks the hub's protocol on 127.0.0.1, with faults on demand.

It knows what `snapshot_download` asks: a revision's commit, the tree of its files, and the
files themselves with ETag, X-Repo-Commit and ranges.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin")  # files that the hub names by their SHA-256


@dataclass
class Repository:
    """One commit of a model, with the tag `v1`."""

    folder: Path
    token: str | None = None  # without it the model is gated
    commit: str = "c" * 40


@dataclass
class Hub:
    """What is served, what goes wrong, and what was asked."""

    repositories: dict[str, Repository]
    interrupt: dict[str, int] = field(default_factory=dict)  # file → how many transfers break off half way
    corrupt: set[str] = field(default_factory=set)  # files that arrive with one byte changed
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, Range)
    url: str = ""


def etag(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix in LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve in a thread while the block runs; `hub.url` is for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        api = path.startswith("api/models/")
        parts = path.removeprefix("api/models/").split("/")
        name, (action, revision, *rest) = "/".join(parts[:2]), [*parts[2:], "", ""][: max(2, len(parts) - 2)]
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound", "Repository Not Found")
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return self._error(403, "GatedRepo", f"Access to model {name} is restricted")
        if revision not in ("v1", repository.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not api:
            return self._file(repository, rest[0])
        entries = [self._entry(file) for file in sorted(repository.folder.iterdir())]
        siblings = [{"rfilename": entry["path"]} for entry in entries]
        self._json(entries if action == "tree" else {"id": name, "sha": repository.commit, "siblings": siblings})

    def _entry(self, file: Path) -> dict:
        entry = {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": etag(file)}
        if file.suffix in LARGE:
            entry["lfs"] = {"oid": etag(file), "size": file.stat().st_size, "pointerSize": 134}
        return entry

    def _file(self, repository: Repository, name: str) -> None:
        file = repository.folder / name
        if not file.is_file():
            return self._error(404, "EntryNotFound", "Entry not found")
        content = file.read_bytes()
        if name in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        asked = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        first = int(asked) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag(file)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        if self.command == "GET":
            if self.hub.interrupt.get(name, 0) > 0:
                self.hub.interrupt[name] -= 1
                self.wfile.write(content[first : (first + len(content)) // 2])
                self.close_connection = True
                return
            self.wfile.write(content[first:])

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _error(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
