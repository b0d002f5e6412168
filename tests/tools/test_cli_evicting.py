"""The command evict: it asks first, and evicts what was named and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.applications import value
from tests.tools.cli_town import Town
from tests.tools.conftest import ALL, APP, COMMAND, ROOT, Run, valid


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Answers the next question of a command; an empty answer is the end of the input."""

    def give(text: str) -> None:
        read, write = os.pipe()
        os.write(write, text.encode())
        os.close(write)
        monkeypatch.setattr(sys, 'stdin', os.fdopen(read))

    return give


def test_evict_asks_first(
    cli: Run, used: Town, tenant: str, answer: Callable[[str], None]
) -> None:
    """Nothing is evicted unless the question is answered with yes."""
    for text, expected in ('', 'or give --yes'), ('n\n', 'nothing was evicted'):
        answer(text)
        code, out, err = cli('evict', '--app', APP, '--tenant', tenant)
        assert (code, out) == (2, '')
        assert expected in err
        assert f'Evict everything of {tenant}' in err
        assert valid(cli, tenant) == ALL
    answer('y\n')
    assert cli('evict', '--app', APP, '--tenant', tenant)[:2] == (0, f'{tenant}: evicted\n')
    assert valid(cli, tenant) == set()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_question_that_is_interrupted(used: Town, tenant: str, number: signal.Signals) -> None:
    """Ctrl-C instead of an answer has the exit code of Ctrl-C, and evicts nothing."""
    process = subprocess.Popen(
        [*COMMAND, 'evict', '--app', APP, '--all'], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
    )  # fmt: skip
    assert process.stderr is not None
    try:
        asked = ''
        while not asked.endswith('[y/N]: '):
            character = process.stderr.read(1)
            assert character
            asked += character
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (130, '')
    assert err.split() == ['interrupted']


def test_evict(cli: Run, used: Town, tenant: str, redis_options: tuple[str, ...]) -> None:
    """What was named is evicted, and no more."""
    own = '--app', APP, '--tenant', tenant, '--yes'

    def left(*arguments: str) -> set[str]:
        assert cli('evict', *arguments).code == 0
        found = valid(cli, tenant)
        value(used, tenant, lambda a: (a.names, a.name(1), a.found('peace')))
        assert valid(cli, tenant) == ALL
        return found

    assert left(*own, 'names') == {'name', 'found'}
    assert left(*own, 'name', '1') == {'names', 'found'}
    assert left(*own, 'found', 'peace') == {'names', 'name'}
    assert left(*own, '--table', 'users') == set()
    assert left(*own, '--table', 'groups') == ALL
    assert left(*own) == set()
    assert left('--app', APP, '--all', '--yes') == set()
    assert left(*redis_options, '--tenant', tenant, '--yes', '--table', 'users') == set()
    assert left(*redis_options, '--all', '--yes') == set()


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--all', '--yes', 'nmaes'], 'did you mean'),
        (['--all', '--yes', 'name', 'x'], "'x' is no int, which the argument id is"),
        (['--all', '--yes', 'names', '1'], 'is called as ()'),
        (['--all', '--yes', '--table', 'user'], "did you mean 'users'"),
        (['--tenant', 'nowhere', '--yes'], "no tenant 'nowhere'"),
        (['--yes'], 'Name the tenants by --tenant, or give --all'),
        (['--all', '--tenant', 'x'], 'Name the tenants by --tenant, or give --all'),
        (['--all', '--table', 'users', 'names'], 'Give a PROPERTY or --table'),
    ],
)
def test_wrong_evictions(
    cli: Run, used: Town, tenant: str, arguments: list[str], expected: str
) -> None:
    """A wrong tenant, property, argument or table is told, and nothing is evicted."""
    code, out, err = cli('evict', '--app', APP, *arguments)
    assert (code, out) == (2, '')
    assert expected in err
    assert valid(cli, tenant) == ALL
