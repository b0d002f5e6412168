"""nginx before a server does what the benchmarks say it does."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .microcache import VARIABLE, microcached, nginx
from .page_load import Connection

LIMIT = 20.0


class Numbers(BaseHTTPRequestHandler):
    """Answers each request with a number of its own, and allows no cache to keep it."""

    protocol_version = 'HTTP/1.1'
    numbers = itertools.count()

    def do_GET(self) -> None:
        body = b'%d' % next(self.numbers)
        self.send_response(200)
        self.send_header('Cache-Control', 'no-store')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def site() -> Iterator[int]:
    """The port of a server of numbers."""
    with ThreadingHTTPServer(('127.0.0.1', 0), Numbers) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def connection(site: int) -> Iterator[Connection]:
    """A connection to nginx before the server of numbers."""
    try:
        nginx()
    except RuntimeError as missing:
        pytest.skip(str(missing))
    with microcached(site) as port:
        made = Connection(port)
        yield made
        made.close()


def test_a_page_is_kept_for_some_time(connection: Connection) -> None:
    """Many requests for a page get the same copy, and later ones a newer one."""
    copies = [connection.ask(b'GET', 1)[2] for _ in range(100)]
    assert len(set(copies)) < len(copies)

    end = time.monotonic() + LIMIT
    while connection.ask(b'GET', 1)[2] == copies[-1]:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_each_post_reaches_the_site(connection: Connection) -> None:
    answers = [connection.ask(b'POST', 1) for _ in range(10)]
    assert {status for status, _, _ in answers} == {200}
    assert len({body for _, _, body in answers}) == 10


def test_a_missing_nginx_is_told(monkeypatch: pytest.MonkeyPatch, site: int) -> None:
    """The case then leaves the contestant out, with this message."""
    monkeypatch.setenv(VARIABLE, '/nowhere/nginx')
    with pytest.raises(RuntimeError, match=f'{VARIABLE} does not name it'), microcached(site):
        pass
