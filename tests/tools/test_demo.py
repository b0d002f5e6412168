"""The demo, run as a user runs it: ``python -m onegov_ormcache demo``."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import redis
from sqlalchemy import create_engine, text

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, '-m', 'onegov_ormcache', 'demo']

#: Nobody listens there.
CLOSED_PORT = 1


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The environment of a demo that keeps its temporary files in a folder."""
    inherited = {k: v for k, v in os.environ.items() if k not in ('COLUMNS', 'FORCE_COLOR')}
    return inherited | {'TMPDIR': str(folder), 'PYTHONIOENCODING': 'utf-8'} | variables


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the demo to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(folder, **variables),
        capture_output=True,
        encoding='utf-8',
        timeout=100,
        check=False,
    )


def rows(output: str) -> dict[str, tuple[str, str]]:
    """The steps that the first table shows: what happened, and the time, by the title."""
    found = {}
    table = output.partition('What it saves')[0]
    for block in re.split(r'[├└┡].*[┤┘┩]', table)[1:-1]:
        lines = [line.strip('│').split('│') for line in block.strip().splitlines()]
        request, happened, took = (
            ' '.join(cell.strip() for cell in cells).strip() for cells in zip(*lines, strict=True)
        )
        title = re.fullmatch(r'\d+\. (.*?) (?:GET|POST) .*', request)
        assert title, request
        found[title[1]] = happened, took
    return found


def ratios(output: str) -> list[int]:
    """How many times faster the second table says that the cache is."""
    return [int(times) for times in re.findall(r'(\d+) times │', output)]


def check_story(output: str) -> None:
    """Assert what is true of every back end."""
    steps = rows(output)
    happened = {title: cell for title, (cell, _) in steps.items()}
    assert all(float(took) > 0 for _, took in steps.values())

    cold = happened['The first request: everything is computed']
    assert 'creator: roles, page_tree, open_tickets, user_names,' in cold
    assert 'process:' not in cold
    assert 'request: page_tree' in cold
    assert happened['The same again'] == (
        'request: page_tree process: roles, page_tree, summary, latest_news'
    )
    role = happened['Another role sees another page tree']
    assert role.endswith('process: roles, summary, latest_news creator: page_tree')
    shared = happened['As if by another process (its memory is empty)']
    assert shared == 'request: page_tree shared: roles, page_tree, summary, latest_news'

    renamed = happened['An editor renames a page']
    assert renamed == 'process: roles changed: table pages evicted: latest_news, page_tree'
    following = happened['The next request computes what shows pages']
    assert following.endswith('process: roles, summary creator: page_tree, latest_news')
    assert 'creator' not in happened['The other tenant is untouched']

    # a page in the 256th part of all pages to which a changed one belongs is computed with it
    search = happened['A search: each page is a value of its own']
    number = int(re.fullmatch(r'.* creator: search, page \((\d+)\)', search)[1])  # type: ignore[index]
    assert number > 40
    renamed = happened['One of these pages is renamed']
    assert f'page (1 of {number})' in renamed
    others = happened['The other pages are used as before']
    assert f'page ({number - 1}) creator: page_tree, search, page' in others

    assert happened['A public one is renamed'] == (
        'process: roles changed: table documents evicted: document_count, visible_documents'
    )
    assert happened['The secret ones are not concerned'] == (
        'process: roles, secret_documents creator: visible_documents, document_count'
    )
    closed = happened['A ticket is closed']
    assert closed.endswith('changed: table tickets evicted: open_tickets, summary')
    bulk = happened['All tickets are closed, by one UPDATE']
    assert bulk.endswith('evicted: open_tickets, secret_documents, summary')
    assert 'creator: open_tickets, summary' in happened['A statement without objects is seen too']

    failed = happened['An import fails halfway: rolled back']
    assert failed == 'process: roles answered with 400 rolled back: nothing evicted'
    assert happened['Nothing was evicted'] == happened['The same again']

    made = happened['A page that is cached as a whole']
    assert made.endswith('creator: view Users')
    assert happened['The same again: its view is not run'] == 'process: view Users'
    copy = happened['The browser asks whether its copy is right']
    assert copy == 'process: view Users answered with 304: the copy is right, no page is sent'
    assert 'view Users' in happened['An editor renames a user']
    assert 'creator: user_names,' in happened['The copy is not right any more']
    assert '304' not in happened['The copy is not right any more']


def test_demo_on_the_embedded_default(tmp_path: Path) -> None:
    """Without servers the demo tells its story, and leaves nothing behind."""
    done = run(tmp_path, '--tenants', '2', COLUMNS='120')
    assert done.stderr == ''
    assert done.returncode == 0
    assert 'on SQLite and memory' in done.stdout
    assert re.search(r'Loaded 1,\d\d\d cities of 2 countries in ', done.stdout)
    check_story(done.stdout)
    assert len(ratios(done.stdout)) == 2
    assert min(ratios(done.stdout)) >= 2
    assert list(tmp_path.iterdir()) == []


def test_demo_on_servers(tmp_path: Path, postgres_dsn: str, redis_url: str) -> None:
    """On PostgreSQL and Redis it tells the same story, and removes what it made there."""
    engine = create_engine(postgres_dsn)

    def left() -> tuple[set[str], set[bytes]]:
        with engine.connect() as connection, redis.Redis.from_url(redis_url) as client:
            names = set(connection.scalars(text('SELECT nspname FROM pg_namespace')))
            return names, set(client.scan_iter('*demo-*'))

    before = left()
    arguments = '--tenants', '3', '--dsn', postgres_dsn, '--redis-url', redis_url
    done = run(tmp_path, *arguments, COLUMNS='120')
    assert done.stderr == ''
    assert done.returncode == 0
    assert 'on PostgreSQL and Redis' in done.stdout
    assert 'found in Redis' in done.stdout
    check_story(done.stdout)
    assert len(ratios(done.stdout)) == 3
    assert min(ratios(done.stdout)) >= 2
    assert left() == before
    engine.dispose()


def test_demo_on_a_sqlite_folder(tmp_path: Path) -> None:
    """In a folder that is given to it the demo removes its own files alone."""
    folder = tmp_path / 'tenants'
    folder.mkdir()
    (folder / 'main.sqlite').touch()
    done = run(tmp_path, '--tenants', '2', '--dsn', f'sqlite:///{folder}')
    assert done.returncode == 0
    assert [file.name for file in folder.glob('*.sqlite*')] == ['main.sqlite']


def test_output_fits_into_80_columns(tmp_path: Path) -> None:
    """Without a terminal no line is longer than 80 characters, and none has colours."""
    done = run(tmp_path, '--tenants', '2')
    assert done.returncode == 0
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    assert '\x1b' not in done.stdout


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--dsn', f'postgresql+psycopg://x@127.0.0.1:{CLOSED_PORT}/x'], r'dsn.*refused'),
        (['--dsn', 'mysql://localhost/x'], 'mysql is not supported; use postgresql or sqlite'),
        (['--dsn', 'nonsense'], 'dsn is of the type str, .*; expected an SQLAlchemy URL'),
        (['--redis-url', f'redis://127.0.0.1:{CLOSED_PORT}/0'], 'Redis .*refused'),
        (['--redis-url', 'nonsense'], 'redis_url is of the type str, .*; expected a URL'),
    ],
)
def test_wrong_server_is_one_clear_line(
    tmp_path: Path, arguments: Sequence[str], message: str
) -> None:
    """A server that can't be used is one line that says which and why, and exit code 2."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ''
    [line] = done.stderr.splitlines()
    assert re.match(f'error: .*{message}', line)
    assert list(tmp_path.iterdir()) == []


def test_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    """A port that is taken is told before anything is loaded."""
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(tmp_path, '--serve', '--port', port)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr == f'error: port {port}: Address already in use; choose one with --port\n'


@pytest.mark.parametrize(
    'arguments', [['--tenants', '1'], ['--port', '65536'], ['--all', '--tenants', '2']]
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: Sequence[str]) -> None:
    """Arguments that make no sense are refused, with how it should be."""
    done = run(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stdout == ''
    assert done.stderr.startswith('Usage: python -m onegov_ormcache demo')
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('missing', 'message'),
    [
        ('rich', 'the command line needs rich: python -m pip install "onegov_ormcache[cli]"'),
        ('click', 'the command line needs click: python -m pip install "onegov_ormcache[cli]"'),
        ('waitress', 'the demo needs waitress: python -m pip install "onegov_ormcache[demo]"'),
    ],
)
def test_what_is_missing_is_told(missing: str, message: str) -> None:
    """Without one of the extras, a line says what to install."""
    code = (
        f'import sys; sys.modules[{missing!r}] = None\n'
        'from onegov_ormcache.__main__ import main\n'
        "sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith('error: ')
    assert line.endswith(message)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A demo that serves, and its address."""
    process = subprocess.Popen(
        [*COMMAND, '--tenants', '2', '--serve', '--port', '0'],
        cwd=ROOT,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding='utf-8',
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if address := re.match(r'Serving on (http://127\.0\.0\.1:\d+) ', line):
                yield process, address[1]
                return
        raise AssertionError(process.communicate()[1])
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize('ending', [signal.SIGINT, signal.SIGTERM])
def test_serving_answers_and_ends_cleanly(tmp_path: Path, ending: signal.Signals) -> None:
    """With --serve real HTTP requests are answered until a signal ends it, without a trace."""
    with serving(tmp_path) as (process, address):
        with urlopen(Request(f'{address}/', headers={'X-Tenant': 'ch'}), timeout=30) as response:
            assert json.load(response)['title'] == 'Switzerland'
        rename = Request(
            f'{address}/pages/1/rename',
            data=b'title=Schweiz',
            headers={'X-Tenant': 'ch', 'X-User': 'editor'},
        )
        with urlopen(rename, timeout=30) as response:
            assert response.status == 200
        with urlopen(Request(f'{address}/', headers={'X-Tenant': 'ch'}), timeout=30) as response:
            assert json.load(response)['title'] == 'Schweiz'
        process.send_signal(ending)
        _, errors = process.communicate(timeout=60)
        assert errors == ''
        assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_interrupted_demo_ends_cleanly(tmp_path: Path) -> None:
    """Ctrl-C in the middle ends the demo with one word, and removes what it made."""
    process = subprocess.Popen(
        [*COMMAND, '--all'],
        cwd=ROOT,
        env=environment(tmp_path, PYTHONUNBUFFERED='1'),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding='utf-8',
    )
    assert process.stdout is not None
    try:
        # the countries are about to be loaded
        assert process.stdout.readline().startswith('A town hall for each country')
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert errors == 'interrupted\n'
    assert process.returncode == 130
    assert 'What it saves' not in output
    assert list(tmp_path.iterdir()) == []
