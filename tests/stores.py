"""Stores for tests: fsspec's memory, and an S3-compatible server (moto's) that fails when it is told to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sra_data.shards.stores import mirror, places, remote

Environ = dict[str, Any]
StartResponse = Callable[..., Any]


@dataclass
class Machines:
    """Machines that share nothing but a store: each has a workspace and a cache of its own."""

    folder: Path
    patch: pytest.MonkeyPatch

    def use(self, name: str, *, cache_bytes: int = 1 << 24) -> None:
        """From now on this process is that machine."""
        self.patch.setenv(places.WORKSPACE, str(self.folder / name / "workspace"))
        self.patch.setenv(places.CACHE_DIR, str(self.folder / name / "cache"))
        self.patch.setenv(places.CACHE_GIB, repr(cache_bytes / (1 << 30)))


def without_waits(patch: pytest.MonkeyPatch) -> None:
    """Ask again at once."""
    patch.setattr(remote, "WAITS", (0.0,) * len(remote.WAITS))


@contextmanager
def in_memory(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Machines that share fsspec's memory, which is empty before and afterwards, and is asked again at once."""
    _forget_all()
    without_waits(patch)
    yield Machines(folder, patch)
    _forget_all()


def _forget_all() -> None:
    MemoryFileSystem.store.clear()
    mirror._mirror.cache_clear()


@dataclass
class Fault:
    """What goes wrong with the next requests that fit.

    Attributes:
        method: of the request.
        path: what its path must match.
        answer: the status that is answered; 0 answers nothing before the client has given up.
        happens: whether the request is carried out all the same.
        times: how often.
    """

    method: str
    path: str
    answer: int
    happens: bool = False
    times: int = 1
    seen: list[str] = field(default_factory=list)


CODES = {403: "AccessDenied", 409: "ConditionalRequestConflict", 500: "InternalError", 503: "ServiceUnavailable"}
LONGER_THAN_THE_CLIENT_WAITS = 1.5


class Faulty:
    """A WSGI application around another one, with faults; remembers every request."""

    def __init__(self, inner: Callable[..., Iterable[bytes]]) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.ignores_conditions = False
        self.lock = threading.Lock()

    def __call__(self, environ: Environ, start: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self.lock:
            self.requests.append((method, path))
            fault = next((one for one in self.faults if self._fits(one, method, path)), None)
            if fault is not None:
                fault.seen.append(path)
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
            environ.pop("HTTP_IF_MATCH", None)
        if fault is None:
            return self.inner(environ, start)
        if fault.happens:
            b"".join(self.inner(environ, lambda *said: None))
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if not fault.answer:
            time.sleep(LONGER_THAN_THE_CLIENT_WAITS)
        status = fault.answer or 503
        body = f"<?xml version='1.0'?><Error><Code>{CODES[status]}</Code><Message>a fault</Message></Error>".encode()
        start(f"{status} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    @staticmethod
    def _fits(fault: Fault, method: str, path: str) -> bool:
        return fault.method == method and re.search(fault.path, path) is not None and len(fault.seen) < fault.times


@dataclass
class S3:
    """A running server.

    Attributes:
        app: where faults are planned and requests remembered.
        endpoint: its address.
    """

    app: Faulty
    endpoint: str

    def fail(self, method: str, path: str, answer: int, *, happens: bool = False, times: int = 1) -> Fault:
        """Plan a fault."""
        fault = Fault(method, path, answer, happens, times)
        self.app.faults.append(fault)
        return fault

    def puts(self, ending: str) -> list[str]:
        """Paths of the keys that were put, with this ending."""
        return [path for method, path in self.app.requests if method == "PUT" and path.endswith(ending)]


@contextmanager
def s3_server() -> Iterator[S3]:
    """An S3-compatible server on the loopback, with one bucket, `bucket`."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    app = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield S3(app, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings_of(endpoint: str) -> dict[str, Any]:
    """fsspec's settings for the server: fails at once, so that it is we who ask again."""
    return {
        "endpoint_url": endpoint,
        "key": "key",
        "secret": "secret",
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": {
            "read_timeout": 1,
            "connect_timeout": 5,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    }
