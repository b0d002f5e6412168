"""The town hall behind real WSGI servers, with the cache and without.

What it serves is told by the environment: see ``fixtures.townhall.wsgi``, and
``BENCHMARK_TENANT`` for the one tenant, ``BENCHMARK_CACHE`` (``no``: without).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.townhall import make_application
from fixtures.townhall.serving import without_cache
from onegov_ormcache import OrmCacheMiddleware
from onegov_ormcache.tags.memory import MemoryTagStore
from tests.support.servers import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 30
#: Makes the town hall.
TOWN = 'tests.benchmarks.serving:make'


def make() -> OrmCacheMiddleware:
    """The application, made in the process that serves it."""
    application = make_application(
        {
            'dsn': os.environ['TOWNHALL_DSN'],
            'redis_url': os.environ['TOWNHALL_REDIS_URL'],
            'namespace': os.environ['TOWNHALL_NAMESPACE'],
        },
        schema=os.environ['BENCHMARK_TENANT'],
    )
    if os.environ.get('BENCHMARK_CACHE') == 'no':
        without_cache(application)
        # nothing is cached, so nobody needs to be told of changes: no Redis either
        application.app.orm_cache.versions.tags = MemoryTagStore()
    return application


def commands(port: int, target: str = TOWN) -> dict[str, list[str]]:
    """How each server is started; both have eight threads.

    :param target: the module and the function that makes the application.
    """
    return {
        'waitress, 8 threads': [
            *('-m', 'waitress', '--host=127.0.0.1', f'--port={port}', '--threads=8'),
            *('--call', target),
        ],
        'gunicorn, 2 processes': [
            *('-m', 'gunicorn', f'--bind=127.0.0.1:{port}', '--workers=2', '--threads=4'),
            *('--worker-class=gthread', '--log-level=error', f'{target}()'),
        ],
    }


@contextmanager
def served(
    server: str, environment: dict[str, str], target: str = TOWN, python: str = sys.executable,
    folder: Path = ROOT,
) -> Iterator[int]:  # fmt: skip
    """Run an application under a server; gives its port on loopback.

    :param target: the module and the function that makes the application.
    :param python: the interpreter of an environment that has the server.
    :param folder: where that Python finds the module.
    """
    port = free_port()
    with running([python, *commands(port, target)[server]], port, environment, folder):
        yield port


@contextmanager
def running(
    command: list[str], port: int, environment: dict[str, str] | None = None, folder: Path = ROOT
) -> Iterator[None]:
    """Run a server in a process of its own, which ends with the block.

    :param port: where it answers on loopback.
    :param environment: variables beside those of this process.
    :raises RuntimeError: if it does not answer.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    try:
        wait_until_served(process, port)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_served(process: subprocess.Popen[bytes], port: int) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f'http://127.0.0.1:{port}/', timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f'the server does not answer (it ended with {process.poll()})')
