"""The configurations of docs/servers.rst, taken from the page and run."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from tests.support.outside import until
from tests.support.pgbouncer import PGBOUNCER_VARIABLE, PgBouncer, find_pgbouncer

PAGE = Path(__file__).parents[2] / 'docs' / 'servers.rst'
PORT = '8080'


@pytest.fixture(scope='module')
def blocks() -> dict[str, str]:
    """The page's code blocks that have a name, by name."""
    settings = {'report_level': 5, 'syntax_highlight': 'none'}
    tree = publish_doctree(PAGE.read_text(encoding='utf-8'), settings_overrides=settings)
    return {
        name: block.astext()
        for block in tree.findall(nodes.literal_block)
        for name in block['names']
    }


def request(url: str, data: bytes | None = None) -> Any:
    with urllib.request.urlopen(url, data, timeout=30) as response:
        return json.load(response)


@contextmanager
def served(
    blocks: dict[str, str], name: str, folder: Path, environment: dict[str, str]
) -> Iterator[str]:
    """Save the page's files, run one of its commands on another port, and yield the URL."""
    with closing(socket.create_server(('127.0.0.1', 0))) as free:
        port = str(free.getsockname()[1])
    for file in blocks:
        if '.' in file:
            (folder / file).write_text(blocks[file].replace(PORT, port), encoding='utf-8')
    program, *arguments = shlex.split(blocks[name].removeprefix('$ ').replace(PORT, port))
    with open(folder / 'log', 'w+', encoding='utf-8') as log:
        server = subprocess.Popen(
            [str(Path(sys.executable).with_name(program)), *arguments],
            cwd=folder,
            env={**os.environ, 'PYTHONPATH': str(folder), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

        def answers() -> bool:
            assert server.poll() is None, Path(log.name).read_text(encoding='utf-8')
            try:
                request(f'http://127.0.0.1:{port}')
            except (urllib.error.URLError, ConnectionError):
                return False
            return True

        try:
            until(answers, 60)
            yield f'http://127.0.0.1:{port}'
        finally:
            server.terminate()
            try:
                server.wait(30)
            finally:
                if server.poll() is None:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()


def check(url: str) -> None:
    """Each of many requests, to whichever process, sees what was answered before."""
    names: list[str] = []
    for number in range(12):
        names.append(f'n{number:02}')
        assert request(url, f'name={names[-1]}'.encode()) == 'added'
        assert all(request(url) == names for _ in range(4))


@pytest.fixture
def environment(postgres_dsn: str, redis_url: str, tenant: str) -> dict[str, str]:
    return {'TOWN_DSN': postgres_dsn, 'TOWN_REDIS_URL': redis_url, 'TOWN_SCHEMA': tenant}


@pytest.mark.parametrize('name', ['run-waitress', 'run-gunicorn', 'run-gevent', 'run-uwsgi'])
def test_server_of_the_page(
    blocks: dict[str, str], environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    """The server starts with the page's files and command, and no answer is stale."""
    with served(blocks, name, tmp_path, environment) as url:
        check(url)


def test_development_without_servers(blocks: dict[str, str], tmp_path: Path) -> None:
    """The page's program needs neither PostgreSQL nor Redis in one process."""
    with served(blocks, 'run-waitress', tmp_path, {'TOWN_SCHEMA': 'main'}) as url:
        check(url)
    assert (tmp_path / 'tenants' / 'main.sqlite').exists()


def test_pgbouncer_of_the_page(
    blocks: dict[str, str], environment: dict[str, str], tmp_path: Path
) -> None:
    """Several processes behind PgBouncer with the page's configuration, apart from addresses and
    passwords, are never stale."""
    program = find_pgbouncer()
    if program is None:
        pytest.skip(f'PgBouncer is not installed, and {PGBOUNCER_VARIABLE} does not name it')
    parsed = ConfigParser()
    parsed.read_string(blocks['pgbouncer.ini'])
    assert set(parsed['databases']) == {'town'}
    parsed.read_dict({
        'pgbouncer': {
            'listen_port': '{port}', 'auth_type': 'any', 'unix_socket_dir': '',
            'logfile': '{folder}/log',
        },
    })  # fmt: skip
    parsed.remove_option('pgbouncer', 'auth_file')
    parsed['databases'] = {'{name}': '{database}'}
    template = StringIO()
    parsed.write(template)
    with PgBouncer(program, environment['TOWN_DSN'], template=template.getvalue()) as pooler:
        behind = {**environment, 'TOWN_DSN': pooler.dsn}
        with served(blocks, 'run-gunicorn', tmp_path, behind) as url:
            check(url)
