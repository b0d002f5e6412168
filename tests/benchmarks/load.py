"""A load client of bounded time and count: threads with a connection each, loopback only."""

from __future__ import annotations

import http.client
import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

from .measuring import Timing

#: No run lasts longer than this many seconds.
LIMIT = 60.0
READS = ('/', '/tickets', '/users', '/documents', '/tree')


@dataclass(frozen=True)
class Load:
    """The result of one run of the client."""

    seconds: float
    answers: int
    latencies: Timing
    failures: Sequence[str]

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.answers / self.seconds


def run(port: int, requests: int, writes: float, clients: int = 4, seed: int = 1) -> Load:
    """Make so many requests, of which a part are writes.

    :param writes: from 0 (none) to 1 (all); each opens a ticket.
    """
    chooser = random.Random(seed)
    plan = [chooser.random() < writes for _ in range(requests)]
    lock = threading.Lock()
    latencies: list[float] = []
    failures: list[str] = []
    begun = perf_counter()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection('127.0.0.1', port, timeout=LIMIT)
        own: list[float] = []
        for at in range(number, requests, clients):
            start = perf_counter()
            if start - begun > LIMIT:
                failures.append(f'not done within {LIMIT:.0f} s')
                break
            try:
                status = ask(connection, at, plan[at])
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection.close()
                continue
            own.append(perf_counter() - start)
            if status != 200:
                failures.append(f'status {status}')
        connection.close()
        with lock:
            latencies.extend(own)

    threads = [threading.Thread(target=client, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Load(perf_counter() - begun, len(latencies), Timing(tuple(latencies)), failures)


def ask(connection: http.client.HTTPConnection, number: int, is_write: bool) -> int:
    """Make one request, read its whole answer, and return the status."""
    if is_write:
        headers = {'Content-Type': 'application/x-www-form-urlencoded'}
        connection.request('POST', '/tickets', f'title=Ticket+{number}', headers)
    else:
        connection.request('GET', READS[number % len(READS)])
    response = connection.getresponse()
    response.read()
    return response.status
