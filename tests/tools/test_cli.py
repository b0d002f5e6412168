"""The command line where servers are away, input is no text, or nobody reads its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.applications import change
from tests.support.models import User
from tests.support.servers import RedisServer
from tests.tools.cli_town import Town
from tests.tools.conftest import APP, COMMAND, ROOT, Run


def test_what_is_no_text(cli: Run, used: Town, redis_options: tuple[str, ...]) -> None:
    """Bytes that are no UTF-8 are one line that says so, wherever they stand; nothing is
    evicted."""
    wrong = os.fsdecode(b'hush\xff')
    for arguments in (
        ['values', *redis_options, '--decode', wrong],
        ['stats', '--redis-url', f'redis://:{wrong}@127.0.0.1:1/0'],
        ['outbox', '--dsn', f'postgresql+psycopg://me:{wrong}@127.0.0.1:1/db'],
        ['evict', *redis_options, '--all', '--yes', '--table', wrong],
        ['evict', '--app', APP, '--all', '--yes', 'found', wrong],
    ):
        code, out, err = cli(*arguments)
        assert (code, out) == (2, '')
        assert 'is no UTF-8' in err


def test_variable_that_is_no_text(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are those of an environment variable."""
    wrong = os.fsdecode(b'postgresql+psycopg://me:hush\xff@127.0.0.1:1/db')
    monkeypatch.setenv('ONEGOV_ORMCACHE_DSN', wrong)
    code, out, err = cli('outbox')
    assert (code, out) == (2, '')
    assert 'is no UTF-8' in err


def test_a_redis_that_is_away(cli: Run) -> None:
    """A wrong address is one line, for each command that takes it."""
    options = '--redis-url', 'redis://:hush@127.0.0.1:1/0'
    for arguments in ['stats'], ['stats', '--watch'], ['tags'], ['values'], ['evict', '--all']:
        code, out, err = cli(*arguments, *options)
        assert (code, out) == (2, '')
        assert err.startswith('error: Redis')
        assert err.count('\n') == 1


def test_a_redis_that_stalls(cli: Run, own_redis: RedisServer) -> None:
    """A Redis that takes connections and does not answer is an error, too, and no wait."""
    own_redis.pause()
    try:
        for command in ['stats'], ['tags'], ['values'], ['evict', '--all']:
            code, _, err = cli(*command, '--redis-url', own_redis.url)
            assert code == 2
            assert err.startswith('error: Redis')
    finally:
        own_redis.resume()


def test_a_namespace_that_nobody_uses(
    cli: Run, used: Town, redis_options: tuple[str, ...]
) -> None:
    """A wrong namespace is told, with those that there are."""
    for command in 'tags', 'values':
        code, out, err = cli(command, *redis_options[:2], '--namespace', 'nobody')
        assert (code, out) == (2, '')
        assert "nothing is known of any tenant in the namespace 'nobody'" in err
    assert cli('tags', *redis_options[:2], '--namespace', 'a b').code == 2


@pytest.mark.parametrize('command', ['tags', 'values', 'stats'])
def test_broken_pipe(used: Town, command: str) -> None:
    """A command whose output nobody reads ends in silence."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, command, '--app', APP], cwd=ROOT, stdout=write, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141
    assert 'rror' not in done.stderr


@pytest.mark.parametrize('command', [['tags'], ['tags', '--json'], ['check'], ['--help']])
def test_output_without_room(used: Town, command: list[str]) -> None:
    """A full disk is one line, and not the exit code of something that was found."""
    options = [] if command == ['--help'] else ['--app', APP]
    with Path('/dev/full').open('w') as full:
        done = subprocess.run(
            [*COMMAND, *command, *options], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
            encoding='utf-8',
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('error: [Errno 28]')
    assert 'Traceback' not in done.stderr


def test_closed_output(used: Town) -> None:
    """Where nobody has a standard output, a command works all the same."""
    program = 'import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])'
    done = subprocess.run(
        [sys.executable, '-c', program, *COMMAND, 'tags', '--app', APP],
        cwd=ROOT, stderr=subprocess.PIPE, encoding='utf-8',
    )  # fmt: skip
    assert done.returncode == 0
    assert 'Traceback' not in done.stderr


def test_ascii_terminal(used: Town) -> None:
    """A terminal that knows ASCII alone is no error."""
    environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C', 'PYTHONUTF8': '0'}
    done = subprocess.run(
        [*COMMAND, 'tags', '--app', APP], cwd=ROOT, capture_output=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_class_as_an_application(used: Town, tenant: str) -> None:
    """The class of an application is enough, and a module of the working directory."""
    folder = ROOT / 'tests' / 'tools'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [*COMMAND, 'tags', '--app', 'cli_town:Town', '--json'], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert list(json.loads(done.stdout)['tenants']) == [tenant]
    assert 'an application may print' in done.stderr


def test_change_is_seen(cli: Run, used: Town, tenant: str) -> None:
    """A value that a commit has evicted is not valid any more, and it is said which tag did it."""
    change(used, tenant, User(name='Bea'))
    code, out, _ = cli('values', '--app', APP, '--property', 'names')
    assert code == 0
    assert '0 valid' in out
    assert 'no, changed: table:users' in out


def test_version_and_help(cli: Run) -> None:
    """The version, and the help of each command."""
    assert cli('--version').out.count('.') >= 1
    for command in 'stats', 'tags', 'values', 'explain', 'evict', 'outbox', 'check':
        code, out, _ = cli(command, '--help')
        assert code == 0
        assert out.startswith('Usage: ')
    for arguments, command in ((), ''), (('stat',), ''), (('stats', '--no'), ' stats'):
        assert f"onegov_ormcache{command} --help' for help.\nerror: " in cli(*arguments).err
