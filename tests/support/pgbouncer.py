"""A PgBouncer in front of the tests' PostgreSQL, as many installations have one.

No wheel brings it along, so the tests that need it are skipped where it is not installed. The
environment variable ORMCACHE_TEST_PGBOUNCER names its program; otherwise it is looked for in the
search path.

This module knows nothing of pytest.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from contextlib import closing
from types import TracebackType
from typing import Self

import psycopg
from sqlalchemy.engine import make_url

from .servers import START_ATTEMPTS, START_SECONDS, free_port, libpq_url, short_folder

PGBOUNCER_VARIABLE = 'ORMCACHE_TEST_PGBOUNCER'

CONFIGURATION = """
[databases]
{name} = {database}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
logfile = {folder}/log
"""


def find_pgbouncer() -> str | None:
    """Return the path of the program; None if there is none."""
    return os.environ.get(PGBOUNCER_VARIABLE) or shutil.which('pgbouncer')


class PgBouncer:
    """A PgBouncer of a test's own. Entering the context starts it, leaving the context ends it.

    :param program: its path.
    :param dsn: the SQLAlchemy URL of the PostgreSQL behind it.
    :param mode: 'transaction' or 'session'.
    :param size: the number of connections to PostgreSQL at most.
    :param template: a configuration with the fields of :data:`CONFIGURATION`.
    """

    def __init__(
        self,
        program: str,
        dsn: str,
        mode: str = 'transaction',
        size: int = 3,
        template: str = CONFIGURATION,
    ) -> None:
        self._program = program
        self._template = template
        self._url = make_url(dsn)
        self._mode = mode
        self._size = size
        self._folder = short_folder('ormcache-pgb-')
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> Self:
        try:
            for _ in range(START_ATTEMPTS):
                self._port = free_port()
                self._start()
                if self._answers():
                    return self
                # between the look and the start, someone else took the port
                self._end()
            raise RuntimeError(f'PgBouncer did not start:\n{(self._folder / "log").read_text()}')
        except BaseException:
            self._end()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def dsn(self) -> str:
        """The SQLAlchemy URL of the database behind it, as clients see it."""
        url = self._url.set(host='127.0.0.1', port=self._port, query={})
        return url.render_as_string(hide_password=False)

    def _start(self) -> None:
        url, query = self._url, self._url.query
        parts = {
            'host': query.get('host') or url.host,
            'port': query.get('port') or url.port,
            'dbname': url.database,
            'user': url.username,
            'password': url.password,
        }
        database = ' '.join(f'{key}={value}' for key, value in parts.items() if value)
        configuration = self._folder / 'ini'
        configuration.write_text(
            self._template.format(
                name=url.database, database=database, port=self._port, mode=self._mode,
                size=self._size, folder=self._folder,
            )
        )  # fmt: skip
        command = [self._program, str(configuration)]
        if os.getuid() == 0:
            # it refuses to run as root, and PostgreSQL may trust the owner of its socket alone
            socket = str(parts['host'])
            owner = os.stat(socket).st_uid if os.path.isdir(socket) else pwd.getpwnam('nobody')[2]
            for path in (self._folder, configuration):
                os.chown(path, owner, -1)
            command[1:1] = ['-u', pwd.getpwuid(owner).pw_name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, process_group=0,
        )  # fmt: skip

    def _answers(self) -> bool:
        process = self._process
        assert process is not None
        end = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < end:
            try:
                with closing(psycopg.connect(libpq_url(self.dsn))):
                    return process.poll() is None
            except psycopg.OperationalError:
                time.sleep(0.01)
        return False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
