"""An object store on loopback (S3 by moto, or another) behind a wrapper that injects faults into chosen requests."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

FAULTS = ("500", "503", "commit_then_500", "commit_then_reset", "reset", "slow", "truncate")


@dataclass
class FaultyS3:
    """WSGI application. `plan(method, path, query)` names a fault of FAULTS for a request, or None. `server` (another
    WSGI application) takes moto's place."""

    plan: Callable[[str, str, str], str | None] = lambda method, path, query: None
    log: list[tuple[str, str, str | None]] = field(default_factory=list)
    server: Callable | None = None

    def __post_init__(self):
        self._app = self.server or DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ, start_response):
        method, path, query = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        fault = self.plan(method, path, query)
        self.log.append((method, f"{path}?{query}" if query else path, fault))
        if fault in ("500", "503", "reset"):
            _drain(environ)
        if fault == "slow":
            time.sleep(0.5)
        if fault == "500":
            return _error(start_response, "500 Internal Server Error", "InternalError")
        if fault == "503":
            return _error(start_response, "503 Service Unavailable", "SlowDown")
        if fault == "reset":
            return _reset(environ)
        if fault is None or fault == "slow":
            return self._app(environ, start_response)
        answer = {}

        def remember(status, headers, exc_info=None):
            answer.update(status=status, headers=headers)

        body = b"".join(self._app(environ, remember))
        if fault == "commit_then_500":
            return _error(start_response, "500 Internal Server Error", "InternalError")
        if fault == "commit_then_reset":
            return _reset(environ)
        headers = [(k, v) for k, v in answer["headers"] if k.lower() != "content-length"]
        start_response(answer["status"], [*headers, ("Content-Length", str(len(body)))])
        return _half(environ, body)


@contextmanager
def serve(app: FaultyS3) -> Iterator[str]:
    """The URL of a running server."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _drain(environ) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _error(start_response, status: str, code: str):
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def _reset(environ):
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


def _half(environ, body: bytes):
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def point_at(url: str, patch: pytest.MonkeyPatch) -> None:
    """Let everything in this process and its children take the server at `url` for S3."""
    for name, value in {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # fsspec keeps those of another module's server
