"""The applications that the command line can look at, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tools.cli_town import Town
from tests.tools.conftest import APP, Environment, Run


@pytest.mark.parametrize(
    'attribute',
    ['fresh', 'fresh()', 'make', 'make()', 'Wrapped', 'Wrapped()', 'make_cache', 'make_holder'],
)
def test_applications(cli: Run, used: Town, tenant: str, attribute: str) -> None:
    """An app, a WSGI application around one, a cache, its holder, or a function that makes one."""
    done = cli('tags', '--app', f'tests.tools.cli_town:{attribute}', '--json')
    if attribute == 'Wrapped':
        assert done.code == 2
        return
    assert done.code == 0
    assert list(done.json['tenants']) == [tenant]
    assert 'an application may print' not in done.out


def test_application_of_the_environment(
    cli: Run, used: Town, tenant: str, monkeypatch: pytest.MonkeyPatch,
    redis_options: tuple[str, ...],
) -> None:  # fmt: skip
    """The variable names the application; an option for Redis goes before it."""
    monkeypatch.setenv('ONEGOV_ORMCACHE_APP', APP)
    assert tenant in cli('tags').out
    assert cli('values', *redis_options, '--json').json['values'][0]['where'] is None
    monkeypatch.delenv('ONEGOV_ORMCACHE_APP')
    monkeypatch.setenv('ONEGOV_ORMCACHE_REDIS_URL', redis_options[1])
    assert tenant in cli('tags', '--namespace', redis_options[3]).out
    code, _, err = cli('tags')  # the default namespace
    assert code == 2 or tenant not in err
    assert cli('tags', '--app', APP, '--redis-url', redis_options[1]).code == 2


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('nonsense', "'nonsense' is no path of an application"),
        ('', 'Name the application'),
        ('nowhere:app', "no module 'nowhere'"),
        ('tests.nowhere:app', "no module 'tests.nowhere'"),
        ('tests.tools.cli_town:frsh', "did you mean 'fresh'"),
        ('tests.tools.cli_town:Town.nothing', "has no 'nothing'"),
        ('tests.tools.cli_town:nothing', 'expected an OrmCacheApp'),
        ('tests.tools.cli_town:Base', 'none of applications'),
        ('tests.tools.broken:app', 'ZeroDivisionError: division by zero (/'),
        ('tests.tools.broken:leave', 'ZeroDivisionError'),
    ],
)
def test_what_is_no_application(
    cli: Run, environment: Environment, path: str, expected: str
) -> None:
    """A path that leads to no application is one line that says what is wrong."""
    environment()
    for command in 'tags', 'check', 'outbox':
        code, out, err = cli(command, '--app', path)
        assert (code, out) == (2, '')
        assert expected in err


def test_secrets_of_an_application(cli: Run, environment: Environment) -> None:
    """An error of the application that has a password is shown without it; see the fixture."""
    environment()
    for attribute in 'raises', 'also_raises', 'proxy', 'variable':
        code, _, err = cli('tags', '--app', f'tests.tools.secretive:{attribute}')
        assert code == 2
        assert '***' in err


@pytest.mark.parametrize('arguments', [['check'], ['tags'], ['check', '--json']])
def test_application_that_ends_the_program(
    cli: Run, environment: Environment, arguments: list[str]
) -> None:
    """An application that exits does not make a command a success that was not carried out."""
    environment()
    code, out, err = cli(*arguments, '--app', 'tests.tools.secretive:Ending')
    assert (code, out) == (2, '')
    assert 'the application has ended this program: 0' in err


@pytest.mark.parametrize('command', ['stats', 'tags', 'values', 'outbox', 'evict', 'explain'])
def test_memory_of_another_process(
    cli: Run, environment: Environment, tmp_path: Path, command: str
) -> None:
    """An application on the embedded default can't be looked at from outside, used or not."""
    environment(redis_url=None, dsn=f'sqlite:///{tmp_path}/tenants')
    arguments = {'evict': ['--all'], 'explain': ['names']}.get(command, [])

    def refused() -> None:
        for attribute in 'fresh', 'make':
            path = f'tests.tools.cli_town:{attribute}'
            code, out, err = cli(command, '--app', path, *arguments)
            assert (code, out) == (2, '')
            assert 'memory of its own process' in err

    refused()
    from tests.tools.cli_town import fresh

    app = fresh()
    app.setup_orm_cache()
    refused()
    app.close_orm_cache()
