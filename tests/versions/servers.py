"""Starts the servers of one combination from their programs, and ends them."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.support.outside import until
from tests.support.servers import POSTGRES_SETTINGS, free_port, short_folder

START_SECONDS = 60


def unprivileged(folder: Path) -> dict[str, Any]:
    """Give a folder to a user who is not root, and return the options of a process of that user.

    PostgreSQL refuses to run as root.
    """
    if os.getuid():
        return {}
    nobody = pwd.getpwnam('nobody')
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {'user': nobody.pw_uid, 'group': nobody.pw_gid, 'extra_groups': []}


@contextmanager
def running(
    command: Sequence[str | Path], folder: Path, answers: Callable[[], object], **options: Any
) -> Iterator[None]:
    """Run a server in a folder until the block ends.

    :param answers: returns whether it answers.
    :raises RuntimeError: if it can't be started, or ends by itself.
    """
    log = folder / 'log'
    with log.open('w', encoding='utf-8') as output:
        try:
            server = subprocess.Popen(
                command, cwd=folder, stdout=output, stderr=subprocess.STDOUT, process_group=0,
                **options,
            )  # fmt: skip
        except OSError as error:
            # as root, servers run as another user, who may not see everything
            raise RuntimeError(f'{command[0]} can not be run: {error.strerror}') from error

    def is_there() -> object:
        if server.poll() is not None:
            raise RuntimeError(f'{command[0]} did not start:\n{log.read_text(encoding="utf-8")}')
        return answers()

    try:
        until(is_there, START_SECONDS)
        yield
    finally:
        server.send_signal(2)  # SIGINT: PostgreSQL does not wait for its clients then
        try:
            server.wait(START_SECONDS)
        finally:
            server.kill()
            server.wait()


@contextmanager
def postgres(programs: Path) -> Iterator[tuple[str, str]]:
    """Yield the SQLAlchemy URL of a PostgreSQL server, and its version.

    :param programs: the folder with initdb and postgres.
    :raises RuntimeError: if it does not start.
    """
    folder = short_folder('ormcache-versions-pg-')
    try:
        options = unprivileged(folder)
        data = folder / 'data'
        arguments = ['-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--locale=C', '--no-sync']
        initdb: list[str | Path] = [programs / 'initdb', '-D', data, *arguments]
        try:
            subprocess.run(
                initdb, cwd=folder, check=True, capture_output=True, text=True, **options
            )
        except OSError as error:
            raise RuntimeError(f'{initdb[0]} can not be run: {error.strerror}') from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f'{initdb[0]} failed: {error.stderr.strip()}') from error
        with (data / 'postgresql.conf').open('a', encoding='utf-8') as configuration:
            configuration.write(POSTGRES_SETTINGS)
        port = free_port()
        address = f'127.0.0.1:{port}/postgres'
        found: list[str] = []

        def answers() -> bool:
            try:
                with closing(psycopg.connect(f'postgresql://postgres@{address}')) as connection:
                    row = connection.execute('SHOW server_version').fetchone()
                    found.append(str(row and row[0]).split(maxsplit=1)[0])
            except psycopg.OperationalError:
                return False
            return True

        listen = ['-p', str(port), '-k', str(folder), '-c', 'listen_addresses=127.0.0.1']
        command: list[str | Path] = [programs / 'postgres', '-D', data, *listen]
        with running(command, folder, answers, **options):
            yield f'postgresql+psycopg://postgres@{address}', found[-1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def store(program: Path) -> Iterator[tuple[str, str]]:
    """Yield the URL of a Redis or Valkey server, and its version.

    :raises RuntimeError: if it does not start.
    """
    folder = short_folder('ormcache-versions-redis-')
    try:
        port = free_port()
        url = f'redis://127.0.0.1:{port}/0'
        found: list[str] = []

        def answers() -> bool:
            try:
                with closing(redis.Redis.from_url(url)) as client:
                    info: Any = client.info('server')
            except redis.ConnectionError:
                return False
            found.append(info.get('valkey_version') or info['redis_version'])
            return True

        options = ['--port', str(port), '--bind', '127.0.0.1', '--save', '']
        command: list[str | Path] = [program, *options]
        with running(command, folder, answers, **unprivileged(folder)):
            yield url, found[-1]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
