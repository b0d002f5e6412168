"""A load client for :mod:`.pages`: threads with a connection each, for some time, on loopback.

It speaks plain HTTP/1.1 over sockets: Python's own client takes as long for an answer as the
servers do, and would be what is measured. It knows what each page must show at least, and counts
the stale ones.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from .pages import QUIET

#: The pages that are asked for, the most popular one first: all of them show entries, or two.
PAGES = (0, 1, 2, 3, 4)
MOSTLY_QUIET = (QUIET, 1, QUIET + 1, 2, QUIET + 2)
#: The ranks of the pages in the order in which they are asked for, again and again: the n-th has
#: 1/n of the requests of the first. See Breslau et al., "Web Caching and Zipf-like Distributions"
#: (INFOCOM 1999).
ORDER = random.Random(1).choices(
    range(len(PAGES)), weights=[1 / (rank + 1) for rank in range(len(PAGES))], k=997
)
#: The longest wait for an answer, in seconds.
LIMIT = 20.0
VALUE = re.compile(rb'<!-- value=(\d+) -->')
LENGTH = re.compile(rb'\r\ncontent-length: *(\d+)', re.IGNORECASE)
CLOSE = re.compile(rb'\r\nconnection: *close', re.IGNORECASE)
ETAG = re.compile(rb'\r\netag: *(\S+)', re.IGNORECASE)


@dataclass
class Written:
    """What the writes that were answered have made of the pages, over all runs of a load.

    Each write adds one to the value that its page shows.
    """

    values: Counter[int] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, page: int) -> None:
        with self.lock:
            self.values[page] += 1


@dataclass
class PageLoad:
    """The result of one run of the client."""

    seconds: float = 0.0
    answers: int = 0
    not_modified: int = 0
    #: The pages that did not show a write that was answered before they were asked for.
    stale: int = 0
    failures: list[str] = field(default_factory=list)


def run(
    port: int, seconds: float, writes: float, written: Written, *,
    conditional: bool, pages: Sequence[int] = PAGES, clients: int = 4,
) -> PageLoad:  # fmt: skip
    """Ask for pages for some seconds.

    :param writes: the part of the requests that are writes, from 0 to 1; every so many-th is one.
    :param conditional: True to send ``If-None-Match`` with the tag of the copy that the client
        has.
    :param pages: as many as :data:`PAGES`.
    """
    changing = [page for page in pages if page < QUIET]
    every = round(1 / writes) if writes else 0
    numbers = itertools.count(1)
    load = PageLoad()
    lock = threading.Lock()
    begun = perf_counter()

    def client() -> None:
        connection = Connection(port)
        copies: dict[int, tuple[bytes, int]] = {}
        own = PageLoad()
        try:
            while perf_counter() - begun < seconds:
                number = next(numbers)
                page = pages[ORDER[number % len(ORDER)]]
                if every and number % every == 0:
                    # not the same page each time
                    page = changing[number // every % len(changing)]
                    status, _, _ = connection.ask(b'POST', page)
                    if status == 200:
                        written.add(page)
                else:
                    least = written.values[page]
                    copy = copies.get(page) if conditional else None
                    status, head, body = connection.ask(b'GET', page, copy[0] if copy else None)
                    if status == 304 and copy is not None:
                        own.not_modified += 1
                        value = copy[1]
                    elif status == 200:
                        value = value_of(body)
                        if (tag := ETAG.search(head)) is not None:
                            copies[page] = tag[1], value
                    own.stale += status in (200, 304) and value < least
                own.answers += 1
                if status not in (200, 304):
                    own.failures.append(f'status {status}')
        except (OSError, ValueError) as error:
            own.failures.append(repr(error))
        finally:
            connection.close()
        with lock:
            load.answers += own.answers
            load.not_modified += own.not_modified
            load.stale += own.stale
            load.failures += own.failures

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = perf_counter() - begun
    return load


def value_of(body: bytes) -> int:
    """Return the value that a page shows.

    :raises ValueError: if it is no page.
    """
    found = VALUE.search(body)
    if found is None or not body.endswith(b'</html>\n'):
        raise ValueError(f'no page: {body[:50]!r}')
    return int(found[1])


class Connection:
    """A connection that is kept open; of the answers it understands what the servers send."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._host = b'127.0.0.1:%d' % port
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(('127.0.0.1', self._port), timeout=LIMIT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: bytes, page: int, tag: bytes | None = None) -> tuple[int, bytes, bytes]:
        """Make one request; return the status, the head and the body of the answer.

        :raises ValueError: if the answer does not tell the length of its body.
        :raises OSError: if the server ends the connection.
        """
        lines = [b'%s /pages/%d HTTP/1.1' % (method, page), b'Host: %s' % self._host]
        if method == b'POST':
            lines.append(b'Content-Length: 0')
        if tag is not None:
            lines.append(b'If-None-Match: %s' % tag)
        self._socket.sendall(b'\r\n'.join([*lines, b'', b'']))
        received = b''
        while b'\r\n\r\n' not in received:
            received += self._more()
        head, _, body = received.partition(b'\r\n\r\n')
        status = int(head[9:12])
        if status != 304:
            length = LENGTH.search(head)
            if length is None:
                raise ValueError(f'no Content-Length: {head!r}')
            while len(body) < int(length[1]):
                body += self._more()
        if CLOSE.search(head) is not None:
            self.close()
            self._open()
        return status, head, body

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> bytes:
        part = self._socket.recv(65536)
        if not part:
            raise ConnectionError('the server has ended the connection')
        return part
