"""What type checkers see of properties and functions; mypy and pyright check this module in CI.

A line with an error says so to both: each reports a comment that it does not need.
"""

from __future__ import annotations

from typing import Any, assert_type

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Query

from onegov_ormcache import BoundFunction, OrmCacheApp, orm_cached, rows
from tests.support.models import User


class App(OrmCacheApp):
    #: Installed by a directive.
    directive: BoundFunction[[int], str]

    @orm_cached(policy=User)
    def count(self) -> int:
        return 1

    @orm_cached(policy=rows(User.id))
    def name(self, id: int) -> str:
        return ''

    @orm_cached(policy='auto', expires=60)
    def search(self, words: str, page: int = 1) -> list[str]:
        return []

    @orm_cached(policy='auto')
    def listing(self, page: int = 1) -> list[str]:
        return []

    @orm_cached(policy='auto')
    def sized(self, *, size: int = 1) -> bytes:
        return b''

    @orm_cached(policy=User)
    def users(self) -> Query[int]:
        raise NotImplementedError

    @orm_cached(policy=User)
    def users_of(self, group: int) -> Query[int]:
        raise NotImplementedError

    @orm_cached(policy=User)
    def names(self) -> Select[str]:
        return select(User.name)

    @orm_cached(policy=User)
    def names_of(self, group: int) -> Select[str]:
        return select(User.name)


def properties(app: App) -> None:
    assert_type(app.count, int)
    assert_type(app.users, tuple[int, ...])
    assert_type(app.names, tuple[Row[str], ...])
    app.count()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]


def functions(app: App) -> None:
    assert_type(app.name(3), str)
    assert_type(app.name(id=3), str)
    assert_type(app.name.many([1, 2]), dict[Any, str])
    assert_type(app.search('a'), list[str])
    assert_type(app.search('a', page=2), list[str])
    assert_type(app.users_of(1), tuple[int, ...])
    assert_type(app.names_of(1), tuple[Row[str], ...])
    assert_type(app.directive(1), str)
    app.name('x')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.name()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def functions_whose_parameters_have_defaults(app: App) -> None:
    assert_type(app.listing(), list[str])
    assert_type(app.listing(page=2), list[str])
    assert_type(app.sized(size=2), bytes)
    app.sized(2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
