"""The servers and processes of a soak: PostgreSQL, Redis, and two gunicorns with workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Self
from uuid import uuid4

import psycopg

from fixtures.townhall import load, make_application
from tests.support.outside import libpq_url
from tests.support.servers import PostgresServer, RedisServer
from tests.support.wires import Wire

ROOT = Path(__file__).parents[2]

#: The tenants that are served.
TENANTS = ('is', 'lu')


class Gunicorn:
    """A gunicorn on a socket of its own; entering the context starts it."""

    def __init__(self, workers: int, environment: dict[str, str]) -> None:
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._workers = workers
        self._environment = environment
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [
                *(sys.executable, '-m', 'gunicorn', '--bind', f'fd://{self._listener.fileno()}'),
                *('--workers', str(self._workers), '--threads=4', '--worker-class=gthread'),
                *('--graceful-timeout=5', '--log-level=error', 'tests.soak.serving:make()'),
            ],
            cwd=ROOT,
            env={**os.environ, **self._environment},
            pass_fds=[self._listener.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=None if os.environ.get('SOAK_LOG') else subprocess.DEVNULL,
            process_group=0,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._listener.close()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def workers(self) -> list[int]:
        """The processes of the workers that are there now."""
        path = Path(f'/proc/{self._process.pid}/task/{self._process.pid}/children')
        return [int(child) for child in path.read_text().split()]

    def recycle(self) -> None:
        """Start new workers, and end the old ones in order."""
        self._process.send_signal(signal.SIGHUP)


class World:
    """All servers of one soak, with data."""

    def __init__(
        self, stack: ExitStack, on_outage: str | None, redis_timeout: float
    ) -> None:
        self.postgres = stack.enter_context(PostgresServer())
        self.redis = stack.enter_context(RedisServer())
        self.wire = stack.enter_context(Wire(self.redis.url))
        self.namespace = f'soak-{uuid4().hex[:8]}'
        self._fill()
        environment = {
            'TOWNHALL_DSN': self.postgres.dsn,
            'TOWNHALL_NAMESPACE': self.namespace,
            'SOAK_ON_OUTAGE': on_outage or '',
            'SOAK_REDIS_TIMEOUT': str(redis_timeout),
        }
        #: Reaches Redis by the wire.
        self.wired = stack.enter_context(
            Gunicorn(2, {**environment, 'TOWNHALL_REDIS_URL': self.wire.url})
        )
        #: Reaches Redis without it.
        self.direct = stack.enter_context(
            Gunicorn(1, {**environment, 'TOWNHALL_REDIS_URL': self.redis.url})
        )

    @property
    def gunicorns(self) -> tuple[Gunicorn, Gunicorn]:
        return self.wired, self.direct

    def memory(self) -> float:
        """The memory of all workers, in MiB."""
        pages = 0
        for worker in [worker for each in self.gunicorns for worker in each.workers()]:
            try:
                pages += int(Path(f'/proc/{worker}/statm').read_text().split()[1])
            except (OSError, IndexError):
                continue  # it has just ended
        return pages * os.sysconf('SC_PAGE_SIZE') / 2**20

    def connections(self) -> tuple[int, int]:
        """The connections of PostgreSQL's clients, and of Redis's."""
        with closing(psycopg.connect(libpq_url(self.postgres.dsn))) as connection:
            (clients,) = connection.execute(
                "SELECT count(*) - 1 FROM pg_stat_activity WHERE backend_type = 'client backend'"
            ).fetchone() or (0,)
        with closing(self.redis.client()) as client:
            return clients, len(client.client_list()) - 1

    def _fill(self) -> None:
        application = make_application({'dsn': self.postgres.dsn, 'redis_url': self.redis.url})
        for tenant in TENANTS:
            load(application.app, tenant)
        application.app.close_orm_cache()


@contextmanager
def world(on_outage: str | None, redis_timeout: float) -> Iterator[World]:
    """Start everything, and end it after the block."""
    with ExitStack() as stack:
        yield World(stack, on_outage, redis_timeout)
