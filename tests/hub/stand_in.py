"""A local stand-in of the Hugging Face Hub's API: repositories are created, written by commits, and downloaded."""

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
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
_COMMIT = "0" * 39 + "1"


@dataclass
class Hub:
    """What the server holds.

    Args:
        files: Repository (with its kind) to name to content.
        requests: Method and path of every request.
    """

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    address: str = ""


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def do_POST(self) -> None:
            path, body = urlsplit(self.path).path, self._body()
            hub.requests.append(f"POST {path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer({"error": "no token"}, 401)
            elif path == "/api/repos/create":
                new = json.loads(body)
                name = f"{new['organization']}/{new['name']}" if new.get("organization") else new["name"]
                hub.files.setdefault(f"models/{name}", {})
                self._answer({"url": f"{hub.address}/{name}"})
            elif path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif match := re.fullmatch(r"/api/(models/.+)/preupload/main", path):
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                self._answer({"files": files})
            elif match := re.fullmatch(r"/api/(models/.+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                address = f"{hub.address}/{match[1].removeprefix('models/')}/commit/{_COMMIT}"
                self._answer({"commitUrl": address, "commitOid": _COMMIT, "success": True})
            else:
                self._answer({"error": path}, 404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            if match := re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/revision/[^/]+)?", path):
                self._describe(match[1])
            elif match := re.fullmatch(r"/api/((?:models|datasets)/[^/]+/[^/]+)/tree/[^/]+(?:/(.+))?", path):
                self._list(match[1], match[2] or "")
            elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
                self._send(f"{'datasets' if match[1] else 'models'}/{match[2]}", match[3])
            else:
                self._answer({"error": path}, 404, {"X-Error-Code": "RepoNotFound"})

        def _describe(self, repository: str) -> None:
            if repository not in hub.files:
                self._answer({"error": repository}, 404, {"X-Error-Code": "RepoNotFound"})
                return
            siblings = [{"rfilename": name} for name in hub.files[repository]]
            self._answer({"id": repository.partition("/")[2], "sha": _COMMIT, "siblings": siblings})

        def _list(self, repository: str, folder: str) -> None:
            files = hub.files.get(repository)
            if files is None or (folder and not any(name.startswith(f"{folder}/") for name in files)):
                code = "RepoNotFound" if files is None else "EntryNotFound"
                self._answer({"error": folder}, 404, {"X-Error-Code": code})
                return
            self._answer(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                    if name.startswith(f"{folder}/" if folder else "")
                ]
            )

        def _send(self, repository: str, name: str) -> None:
            content = hub.files.get(repository, {}).get(name)
            if content is None:
                self._answer({"error": name}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._answer(content, headers={"ETag": etag, "X-Repo-Commit": _COMMIT})

    return Handler


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Runs the server on this machine's own address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
