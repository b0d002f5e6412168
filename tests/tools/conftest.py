"""Runs the command line in this process, about an application that has been used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from onegov_ormcache.__main__ import main
from tests.support.applications import change, value
from tests.support.backends import Backend
from tests.support.models import User
from tests.tools import cli_town
from tests.tools.cli_town import SETTINGS, Town

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, '-m', 'onegov_ormcache']

#: The path of the application.
APP = 'tests.tools.cli_town:fresh'

#: The short names of its properties that the fixture ``used`` has read.
ALL = {'names', 'name', 'found'}

#: The settings of an application, changed by keyword arguments.
Environment = Callable[..., dict[str, Any]]


class Done(NamedTuple):
    """What a command has returned and printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The standard output, which is JSON."""
        return json.loads(self.out)


Run = Callable[..., Done]


def valid(cli: Run, tenant: str) -> set[str]:
    """The short names of the properties whose values are valid, as the command says."""
    found = cli('values', '--app', APP, '--tenant', tenant, '--json').json['values']
    return {each['where'].rpartition('.')[2] for each in found if each['is_valid']}


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command; whatever it prints has no password, and no control characters."""
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.delenv('FORCE_COLOR', raising=False)

    def run(*arguments: str) -> Done:
        capfd.readouterr()
        code = main(arguments)
        printed = capfd.readouterr()
        for text in printed:
            assert 'Traceback' not in text
            assert 'hush' not in text
            assert all(c.isprintable() or c == '\n' for c in text)
        return Done(code, printed.out, printed.err)

    return run


@pytest.fixture
def environment(servers_backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Gives the application settings, those of the servers and others."""

    def give(**settings: Any) -> dict[str, Any]:
        given = {**servers_backend.settings, **settings}
        monkeypatch.setenv(SETTINGS, json.dumps(given))
        return given

    return give


@pytest.fixture
def used(environment: Environment, tenant: str) -> Iterator[Town]:
    """The application in another process, as it were: one tenant, some values, a change."""
    environment()
    app = cli_town.fresh()
    app.setup_orm_cache()
    change(app, tenant, User(name='Ada'))
    for _ in range(3):
        value(app, tenant, lambda a: (a.names, a.name(1), a.found('peace')))
    app.orm_cache.statistics.flush()
    yield app
    app.close_orm_cache()


@pytest.fixture
def redis_options(servers_backend: Backend) -> tuple[str, ...]:
    """The options that name the namespace on Redis, without an application."""
    settings = servers_backend.settings
    return '--redis-url', settings['redis_url'], '--namespace', settings['namespace']
