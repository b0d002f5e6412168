"""The load of a soak: readers and writers, who know what an answer must show.

Each writer has a page of news of its own, whose lead it sets to 1, 2, 3 and so on. A reader knows
which number each writer was last told to be committed before it asked: an answer with a smaller
one is stale. Others add pages in requests that are rolled back: an answer with such a page shows
what was never committed.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from .servers import TENANTS, World
from .serving import ERROR, PROCESS, STATEMENTS

#: The title of pages that are never committed.
NEVER = 'never committed'

#: Seconds that a client waits for an answer; no server should need as long.
TIMEOUT = 20.0

#: Seconds between two requests of one client.
THINK = 0.004


@dataclass
class Seen:
    """What the clients have seen during one fault."""

    requests: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    stale: int = 0
    #: The greatest number of seconds by which a stale answer was behind.
    behind: float = 0.0
    uncommitted: int = 0
    slowest: float = 0.0
    commits: int = 0


@dataclass(frozen=True)
class Answer:
    """An answer to a request."""

    status: int
    body: bytes
    process: str
    statements: int
    error: str


class News:
    """A page of news, which one writer changes."""

    def __init__(self, tenant: str, id: int) -> None:
        self.tenant, self.id = tenant, id
        self.sent = 0
        #: The numbers whose commits have been answered, and when.
        self.acknowledged: dict[int, float] = {0: 0.0}

    @property
    def last(self) -> int:
        """The greatest number whose commit was answered."""
        return next(reversed(self.acknowledged))


def ask(
    port: int, tenant: str, path: str, form: dict[str, str] | bytes | None = None
) -> Answer:
    """Make one request, by a connection of its own."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=TIMEOUT)
    headers = {'X-Tenant': tenant}
    body = None
    if form is not None:
        headers['X-User'] = 'editor'
        body = form if isinstance(form, bytes) else urlencode(form).encode()
        if not isinstance(form, bytes):
            headers['Content-Type'] = 'application/x-www-form-urlencoded'
    try:
        connection.request('GET' if form is None else 'POST', path, body, headers)
        response = connection.getresponse()
        content = response.read()
        return Answer(
            response.status, content, response.headers.get(PROCESS, ''),
            int(response.headers.get(STATEMENTS, '-1')), response.headers.get(ERROR, ''),
        )  # fmt: skip
    finally:
        connection.close()


class Load:
    """Threads that make requests until the block ends.

    :param news: what the writers change.
    """

    def __init__(self, world: World, news: list[News], readers: int = 4) -> None:
        self._world = world
        self._news = news
        self._root = {tenant: self._find_root(tenant) for tenant in TENANTS}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self.seen = Seen()
        clients: list[Callable[[random.Random], None]] = [self._read] * readers
        clients += [self._writer(each) for each in news]
        clients += [self._roll_back]
        self._threads = [
            threading.Thread(target=self._repeat, args=(client, number))
            for number, client in enumerate(clients)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make requests while the block runs."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def take(self) -> Seen:
        """Return what was seen since the last call."""
        with self._lock:
            seen, self.seen = self.seen, Seen()
            return seen

    def _repeat(self, client: Callable[[random.Random], None], seed: int) -> None:
        chooser = random.Random(seed)
        while not self._stopping.wait(THINK):
            begun = time.perf_counter()
            try:
                client(chooser)
                failure = None
            except (OSError, http.client.HTTPException) as error:
                failure = type(error).__name__
            except Failed as error:
                failure = str(error)
            with self._lock:
                self.seen.requests += 1
                self.seen.slowest = max(self.seen.slowest, time.perf_counter() - begun)
                if failure is not None:
                    self.seen.failed[failure] += 1

    def _port(self, chooser: random.Random) -> int:
        return chooser.choice(self._world.gunicorns).port

    def _read(self, chooser: random.Random) -> None:
        tenant = chooser.choice(TENANTS)
        own = [each for each in self._news if each.tenant == tenant]
        before = {each.id: each.last for each in own}
        begun = time.monotonic()
        answer = of_status(ask(self._port(chooser), tenant, '/'), 200)
        leads = [news['lead'] for news in json.loads(answer.body)['news']]
        sent = {each.id: each.sent for each in own}
        shown = dict(map(int, lead.split(':')) for lead in leads if ':' in lead)
        with self._lock:
            for each in own:
                number = shown.get(each.id, 0)
                if number > sent[each.id]:
                    self.seen.uncommitted += 1
                if number < before[each.id]:
                    self.seen.stale += 1
                    since = next(
                        at for n, at in each.acknowledged.copy().items() if n > number
                    )
                    self.seen.behind = max(self.seen.behind, begun - since)
        if chooser.random() < 0.2:
            self._read_tree(tenant, chooser)

    def _read_tree(self, tenant: str, chooser: random.Random) -> None:
        answer = of_status(ask(self._port(chooser), tenant, '/tree'), 200)
        if NEVER.encode() in answer.body:
            with self._lock:
                self.seen.uncommitted += 1

    def _writer(self, news: News) -> Callable[[random.Random], None]:
        def write(chooser: random.Random) -> None:
            time.sleep(0.03)
            news.sent += 1
            number = news.sent
            form = {'lead': f'{news.id}:{number}'}
            of_status(ask(self._port(chooser), news.tenant, f'/pages/{news.id}/lead', form), 200)
            news.acknowledged[number] = time.monotonic()
            with self._lock:
                self.seen.commits += 1

        return write

    def _roll_back(self, chooser: random.Random) -> None:
        time.sleep(0.03)
        tenant = chooser.choice(TENANTS)
        body = f'1;{NEVER}\n2;\n'.encode()
        path = f'/pages/{self._root[tenant]}/import'
        of_status(ask(self._port(chooser), tenant, path, body), 400)

    def _find_root(self, tenant: str) -> int:
        answer = ask(self._world.direct.port, tenant, '/tree')
        return int(json.loads(answer.body)['id'])


class Failed(Exception):
    """A request was answered by another status than it should be."""


def of_status(answer: Answer, expected: int) -> Answer:
    """Return an answer that has this status.

    :raises Failed: if it has another one.
    """
    if answer.status != expected:
        raise Failed(f'status {answer.status} {answer.error}'.strip())
    return answer


def is_cached(world: World, tenant: str) -> bool:
    """Return whether each worker answers a page without any SQL."""
    workers = {str(worker) for each in world.gunicorns for worker in each.workers()}
    caching: dict[str, Any] = {}
    for _ in range(40):
        for each in world.gunicorns:
            try:
                answer = ask(each.port, tenant, '/tickets')
            except (OSError, http.client.HTTPException):
                return False
            if answer.status != 200:
                return False
            # of a worker that has just cached the values, the second answer tells
            caching[answer.process] = answer.statements == 0
        if workers <= caching.keys() and all(caching[worker] for worker in workers):
            return True
    return False
