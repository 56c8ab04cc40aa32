"""How the stand-in for the W&B server is spoken to, and the ways in which it fails."""

import base64
import gzip
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    from wandb_server import WandbServer

KEY = "0" * 40


@dataclass(frozen=True)
class Answer:
    status: int = 200
    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


CLOSED = Answer(status=0)  # none: the connection is closed


@dataclass(frozen=True)
class Fault:
    """What happens to a request: nothing for `seconds`; then it is carried out, or not; then it is
    answered, rightly or with `instead`.
    """

    seconds: float = 0.0
    is_done: bool = True
    instead: Answer | None = None


NONE = Fault()
AWAY = Fault(is_done=False, instead=CLOSED)


class Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients come and go
            super().handle_error(request, address)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name.replace("ID", "Id")).lower()


def handler(server: "WandbServer") -> type:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                content = b"".join(parts)
            else:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                content = gzip.decompress(content)
            return content

        def answer(self, told: dict, status: int = 200) -> None:
            answer = self.fault.instead or Answer(status, json.dumps(told).encode())
            if answer is CLOSED:
                self.close_connection = True
                self.connection.close()
                return
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", **answer.headers}
            for name, value in {**headers, "Content-Length": str(len(answer.content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        def handle_one(self) -> None:
            content = self.body()
            path = unquote(urlparse(self.path).path).strip("/")
            self.fault = AWAY if server.is_away else server.fault(path)
            time.sleep(self.fault.seconds)
            if not self.fault.is_done:
                self.answer({})
                return
            parts = path.split("/")
            with server.lock, self.noting():
                if parts == ["graphql"]:
                    self.graphql(json.loads(content))
                elif parts[0] == "files" and parts[-1] == "file_stream":
                    self.answer(server.file_stream(parts[-2], json.loads(content)))
                elif parts[0] == "store":
                    server.store(parts[1], parts[2], "/".join(parts[3:]), content)
                    self.answer({})
                elif parts[:2] == ["sdk", "otel"]:  # the client's own telemetry
                    self.answer({})
                else:
                    server.unknown.append(f"{self.command} {self.path}")
                    self.answer({"errors": [{"message": "unknown"}]}, 404)

        @contextmanager
        def noting(self) -> Iterator[None]:
            """A fault of this server's is the test's, not one more try of the client's."""
            try:
                yield
            except ConnectionError:
                raise
            except Exception as error:
                server.unknown.append(f"{self.command} {self.path}: {error!r}")
                self.answer({"errors": [{"message": "a fault of the stand-in"}]}, 400)

        def graphql(self, asked: dict) -> None:
            key = self.headers.get("Authorization", "").removeprefix("Basic ")
            if base64.b64decode(key).decode() != f"api:{KEY}":
                self.answer({"errors": [{"message": "invalid API key"}]}, 401)
                return
            name = re.search(r"(?:query|mutation|subscription)\s+(\w+)", asked["query"])[1]
            server.seen.append(name)
            variables = asked.get("variables") or {}
            try:
                answer = getattr(server, "list_runs" if name == "Runs" else _snake(name))
                told = answer(variables.get("input", variables))
            except (AttributeError, LookupError) as error:
                query = " ".join(asked["query"].split())
                server.unknown.append(f"{name} ({error!r}): {query} {variables}")
                self.answer({"errors": [{"message": f"unknown operation {name}"}]}, 400)
                return
            self.answer({"data": told})

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one

    return Handler
