"""A small server that speaks the hub's protocol on 127.0.0.1, with faults on demand.

It knows what `snapshot_download` asks: a revision's commit, the tree of its files, and the
files themselves with ETag, X-Repo-Commit and ranges; and what `datasets` asks of a data set,
whose name here begins with "datasets/": also what lies at some paths.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".parquet")  # files that the hub names by their SHA-256


@dataclass
class Repository:
    """One commit of a model or data set, with the tag `v1`."""

    folder: Path
    token: str | None = None  # without it the repository is gated
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


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


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

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        api = path.startswith("api/")
        parts = path.removeprefix("api/").removeprefix("models/").split("/")
        words = 3 if parts[0] == "datasets" else 2
        name, (action, revision, *rest) = (
            "/".join(parts[:words]),
            [*parts[words:], "", ""][: max(2, len(parts) - words)],
        )
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._error(401, "RepoNotFound", "Repository Not Found")
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            return self._error(403, "GatedRepo", f"Access to model {name} is restricted")
        if revision not in ("v1", repository.commit):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if not api:
            return self._file(repository, "/".join(rest))
        if action == "paths-info":
            asked = [repository.folder / path for path in parse_qs(body.decode())["paths"]]
            return self._json([self._entry(repository, path) for path in asked if path.exists()])
        if action == "tree":
            folder = repository.folder.joinpath(*rest)
            if not folder.is_dir():
                return self._error(404, "EntryNotFound", "Entry not found")
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"]) != ["false"]
            found = sorted(folder.rglob("*") if recursive else folder.iterdir())
            return self._json([self._entry(repository, path) for path in found])
        siblings = [{"rfilename": str(file.relative_to(repository.folder))} for file in files_of(repository.folder)]
        self._json({"id": name.removeprefix("datasets/"), "sha": repository.commit, "siblings": siblings})

    def _entry(self, repository: Repository, file: Path) -> dict:
        path = str(file.relative_to(repository.folder))
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest()}
        entry = {"type": "file", "path": path, "size": file.stat().st_size, "oid": etag(file)}
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
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        first, _, last = asked.partition("-")
        first, last = int(first or 0), min(int(last or len(content)), len(content) - 1)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag(file)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        if self.command == "GET":
            if self.hub.interrupt.get(name, 0) > 0:
                self.hub.interrupt[name] -= 1
                self.wfile.write(content[first : (first + last + 1) // 2])
                self.close_connection = True
                return
            self.wfile.write(content[first : last + 1])

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
