"""Properties of an app: what they are on an instance and on the class, and which options they
take."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from onegov_ormcache import (
    OrmCache,
    OrmCacheApp,
    OrmCacheDescriptor,
    OrmCacheFunction,
    orm_cached,
    request_cached,
)
from onegov_ormcache.core.descriptors import RequestCacheDescriptor
from tests.support.models import User


def tomorrow(value: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=value)


def tomorrow_in_seconds(value: int) -> float:
    return 86400


class App(OrmCacheApp):
    @orm_cached(policy=User)
    def count(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy=User, by_role=True)
    def of_role(self) -> str:
        return ''

    @orm_cached(policy=User, vary=lambda app: app.schema, expires=tomorrow)
    def varied(self) -> int:
        return 1

    @orm_cached(User, expires=0.5)
    def optional(self) -> dict[str, int] | None:
        return None

    @request_cached
    def user(self) -> User | None:
        return self.session().get(User, 1)

    @request_cached(merge=True)
    def merged(self) -> list[User]:
        return []

    @request_cached()
    def with_parentheses(self) -> bytes:
        return b''


class Other:
    """A class of a program without Morepath."""

    identity = None

    def __init__(self, orm_cache: OrmCache) -> None:
        self.orm_cache = orm_cache

    @orm_cached(policy=User, by_role=True)
    def count(self) -> int:
        return 1

    @request_cached
    def user(self) -> User:
        return User()


def values(app: App, other: Other) -> None:
    assert_type(app.count, int)
    assert_type(app.of_role, str)
    assert_type(app.varied, int)
    assert_type(app.optional, dict[str, int] | None)
    assert_type(app.user, User | None)
    assert_type(app.merged, list[User])
    assert_type(app.with_parentheses, bytes)
    assert_type(other.count, int)
    assert_type(other.user, User)
    app.count()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
    app.users  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def access_on_the_class() -> None:
    assert_type(App.count, OrmCacheFunction[int, Callable[[], int]])
    assert_type(App.user, RequestCacheDescriptor[User | None])
    assert_type(App.count.used_cache_keys, set[str])
    descriptor: OrmCacheDescriptor[int] = App.count
    assert_type(descriptor.creator(None), int)


def assignment(app: App) -> None:
    app.count = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
    app.user = None  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]


def wrong_options() -> None:
    orm_cached()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    orm_cached(policy=User, role=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    orm_cached(User, by_role='admin')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User, vary='role')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User, vary=lambda: 1)  # type: ignore[misc, arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User, frozen='yes')  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    orm_cached(User, expires='1h')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User, expires=timedelta(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User, expires=tomorrow_in_seconds)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    request_cached(merge='yes')  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    request_cached(policy=User)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


def wrong_creators() -> None:
    def of_nothing() -> int:
        return 1

    def of_two(app: App, id: int) -> int:
        return id

    orm_cached(policy=User)(of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    request_cached(of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    request_cached(of_two)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    request_cached(merge=True)(of_two)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def without_parentheses() -> None:
    def creator(app: Any) -> str:
        return ''

    orm_cached(creator)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
