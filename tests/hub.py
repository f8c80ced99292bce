"""A fake of the hub's HTTP on loopback, as far as an upload needs it: it checks what comes."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_a_test"


class Hub(ThreadingHTTPServer):
    """`repositories` has the files of each, by name; `private` who sees it; `blobs` are large files
    by their SHA-256.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.blobs: dict[str, bytes] = {}
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Hub

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            name, _, file = path[1:].partition("/resolve/")
            content = self.server.repositories[name][file.partition("/")[2]]
            self._send(200, content)
            return
        name = path.removeprefix("/api/models/")
        if name not in self.server.repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        files = [".gitattributes", *self.server.repositories[name]]
        self._tell({"id": name, "siblings": [{"rfilename": file} for file in files]})

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        oid = self.path.rpartition("/")[2]
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == oid, "it came whole"
        self.server.blobs[oid] = content
        self._send(200, b"")

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self._body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send(401, b'{"error": "Invalid credentials"}')
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\nlibrary_name: transformers")
            self._tell({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            self._tell({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [self._place(wanted) for wanted in json.loads(body)["objects"]]
            self._tell({"transfer": "basic", "objects": objects})
        else:
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                self._add(name, json.loads(line))
            self._tell({"commitUrl": f"{self.server.url}/{name}", "commitOid": "1" * 40})

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        known = name in self.server.repositories
        if not known:
            self.server.repositories[name] = {}
            self.server.private[name] = (
                asked["visibility"] if "visibility" in asked else asked["private"]
            )
        self._tell({"url": f"{self.server.url}/{name}"}, 409 if known else 200)

    def _place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.url}/blobs/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href}}}

    def _add(self, name: str, operation: dict[str, Any]) -> None:
        value = operation["value"]
        files = self.server.repositories[name]
        if operation["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        if operation["key"] == "lfsFile":
            files[value["path"]] = self.server.blobs[value["oid"]]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _tell(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _mode(path: str) -> dict[str, Any]:
    large = path.endswith((".safetensors", ".npy"))
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers while it lasts."""
    with Hub() as hub:
        thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
