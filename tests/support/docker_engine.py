"""A Docker engine's API as far as a test session asks it, on a unix socket: it keeps no containers, and fails where a test wants it to."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

ID = "c0ffee" * 10


class DockerEngine:
    """What it was asked, and what it does about it.

    refuses   the operation that fails with 500: images, create or start
    started   called with the body of the create request when its container is started
    """

    def __init__(self, refuses: str = "", started: Callable[[dict[str, Any]], object] = lambda _: None) -> None:
        self.refuses, self.started = refuses, started
        self.created: list[dict[str, Any]] = []
        self.removed: list[str] = []

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and JSON of a request; the path without its version and its query."""
        kind, _, rest = path.partition("/")
        operation = "images" if kind == "images" else "start" if rest.endswith("/start") else rest
        if self.refuses and operation == self.refuses:
            return 500, {"message": f"no {operation} today"}
        match method, kind, rest:
            case "GET", "_ping" | "version", _:
                return 200, {"ApiVersion": "1.47", "Version": "27.0.0"}
            case "GET", "images", _:
                return 200, {"Id": ID}
            case "GET", "networks", _:
                return 200, []
            case "POST", "containers", "create":
                self.created.append(body)
                return 201, {"Id": ID}
            case "POST", "containers", _ if rest == f"{ID}/start":
                self.started(self.created[-1])
                return 204, None
            case "GET", "containers", _ if rest == f"{ID}/json":
                return 200, {"Id": ID, "Name": "/c", "State": {"Status": "running"}, "Config": {}}
            case "DELETE", "containers", _ if rest == ID:
                self.removed.append(rest)
                return 204, None
        return 404, {"message": f"no such thing: {path}"}

    @contextmanager
    def listening(self, path: Path) -> Iterator[str]:
        """Serve on a unix socket at this path; gives what DOCKER_HOST says."""
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                path = self.path.partition("?")[0].lstrip("/")
                if path.startswith("v1."):
                    path = path.partition("/")[2]
                status, said = engine.answer(self.command, path, body)
                data = b"" if said is None else json.dumps(said).encode()
                self.send_response(HTTPStatus(status))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = handle_any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            thread.start()
            try:
                yield f"unix://{path}"
            finally:
                server.shutdown()
                thread.join()
