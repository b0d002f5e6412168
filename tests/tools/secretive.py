"""Applications whose errors have passwords."""

from __future__ import annotations

from typing import Any

from tests.tools.cli_town import Town


def raises() -> None:
    raise ValueError('can not connect to postgresql://me:hush@host/db')


def also_raises() -> None:
    raise RuntimeError('{"user": "me", "password": "hush"}, password=hush')


class Ending(Town):
    """An application that ends the program when it is set up, as if all were well."""


@Ending.setting(section='anything', name='at all')
def ends() -> None:
    raise SystemExit(0)


class Proxy:
    """Stands for something that there is in a request alone."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError('no request: postgresql://me:hush@host/db')


proxy = Proxy()


def __getattr__(name: str) -> Any:
    if name == 'variable':
        raise SystemExit('set DATABASE_URL, as in postgresql://me:hush@host/db')
    raise AttributeError(name)
