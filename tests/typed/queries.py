"""Creators that return a ``Query`` or a ``select()``: the value is a tuple of all rows."""

from __future__ import annotations

from typing import assert_type

from sqlalchemy import Row, Select, select
from sqlalchemy.orm import Query
from sqlalchemy.orm.query import RowReturningQuery

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from tests.support.models import User


class App(OrmCacheApp):
    @orm_cached(policy=User)
    def query(self) -> Query[Row[int, str]]:
        return self.session().query(User.id, User.name)

    @orm_cached(policy=User)
    def of_rows(self) -> RowReturningQuery[int, str]:
        return self.session().query(User.id, User.name)

    @orm_cached(policy=User)
    def query_of(self, group: int) -> RowReturningQuery[str]:
        return self.session().query(User.name)

    @orm_cached(policy=User)
    def one_column(self) -> Select[str]:
        return select(User.name)

    @orm_cached(policy=User)
    def two_columns(self) -> Select[int, str]:
        return select(User.id, User.name)

    @orm_cached(policy=User)
    def selected_of(self, group: int) -> Select[int, str]:
        return select(User.id, User.name)

    @request_cached
    def users(self) -> Query[User]:
        return self.session().query(User)

    @request_cached
    def selected_users(self) -> Select[User]:
        return select(User)

    @request_cached
    def selected_pairs(self) -> Select[User, int]:
        return select(User, User.id)

    @request_cached(merge=True)
    def merged_users(self) -> Query[User]:
        return self.session().query(User)

    @request_cached(merge=True)
    def merged_rows(self) -> Select[User]:
        return select(User)

    @request_cached(merge=True)
    def merged_pairs(self) -> Select[User, int]:
        return select(User, User.id)


def values(app: App) -> None:
    assert_type(app.query, tuple[Row[int, str], ...])
    assert_type(app.of_rows, tuple[Row[int, str], ...])
    assert_type(app.one_column, tuple[Row[str], ...])
    assert_type(app.two_columns, tuple[Row[int, str], ...])
    assert_type(app.query_of(1), tuple[Row[str], ...])
    assert_type(app.selected_of(1), tuple[Row[int, str], ...])
    assert_type(app.selected_of.many([1]), dict[int, tuple[Row[int, str], ...]])


def values_of_a_request(app: App) -> None:
    assert_type(app.users, tuple[User, ...])
    assert_type(app.selected_users, tuple[Row[User], ...])
    assert_type(app.selected_pairs, tuple[Row[User, int], ...])
    assert_type(app.merged_users, tuple[User, ...])
    assert_type(app.merged_rows, tuple[Row[User], ...])
    assert_type(app.merged_pairs, tuple[Row[User, int], ...])


def elements(app: App) -> None:
    for id, name in app.two_columns:
        assert_type(id, int)
        assert_type(name, str)
    for (word,) in app.query_of(1):
        assert_type(word, str)
    app.query.count()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    app.query.filter()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
