"""A small hub: the part of its HTTP interface by which its client fetches a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repository: str, files: Mapping[str, bytes], held: str, go_on: threading.Event) -> Iterator[str]:
    """A hub with one repository; yields its URL. held: the file that comes to its end only once `go_on` is set."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        holds = False

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer()

        def answer(self, body: bool = True) -> None:
            path = self.path.partition("?")[0]
            prefix = f"/{repository}/resolve/{COMMIT}/"
            if path.startswith(f"/api/models/{repository}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in files.items()
                ]
                self.send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(f"/api/models/{repository}"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}
                self.send(json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
            elif path.startswith(prefix) and path.removeprefix(prefix) in files:
                data = files[path.removeprefix(prefix)]
                tag = hashlib.sha1(data).hexdigest()
                self.holds = path.endswith(f"/{held}")
                self.send(data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, body)
            else:
                self.send(b"{}", {"X-Error-Code": "RepoNotFound"}, body, status=404)

        def send(self, data: bytes, headers: Mapping[str, str], body: bool, status: int = 200) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body and self.holds:
                self.wfile.write(data[:-1])
                assert go_on.wait(60)
                data = data[-1:]
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
