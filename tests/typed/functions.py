"""Creators with arguments: the functions that they become, and ``many``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, assert_type

from onegov_ormcache import BoundFunction, OrmCacheApp, orm_cached, rows
from onegov_ormcache.core.many_types import ManyItems
from tests.support.models import User


def several(app: App, ids: list[int]) -> dict[int, str]:
    return dict.fromkeys(ids, '')


def several_of_any(app: Any, ids: Sequence[int]) -> Mapping[int, str]:
    return dict.fromkeys(ids, '')


class App(OrmCacheApp):
    #: Installed by a directive.
    directive: BoundFunction[[int], str]

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
    def between(self, first: int, last: int) -> str:
        return ''

    @orm_cached(policy=User)
    def three(self, first: int, last: int, name: str) -> str:
        return ''

    @orm_cached(policy=User)
    def four(self, a: int, b: int, c: int, d: int) -> str:
        return ''

    @orm_cached(policy=User, many=several)
    def with_many(self, id: int) -> str:
        return ''

    @orm_cached(policy=User, many=several_of_any)
    def with_many_of_any(self, id: int) -> str:
        return ''


def calls(app: App) -> None:
    assert_type(app.name(3), str)
    assert_type(app.name(id=3), str)
    assert_type(app.search('a'), list[str])
    assert_type(app.search('a', page=2), list[str])
    assert_type(app.between(1, last=2), str)
    assert_type(app.directive(1), str)
    app.name('x')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.name()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    app.name(3, 4)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    app.name(of=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def parameters_that_all_have_defaults(app: App) -> None:
    assert_type(app.listing(), list[str])
    assert_type(app.listing(page=2), list[str])
    assert_type(app.sized(size=2), bytes)
    app.sized(2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def many(app: App) -> None:
    assert_type(app.name.many([1, 2]), dict[int, str])
    assert_type(app.name.many(id for id in range(3)), dict[int, str])
    assert_type(app.directive.many({1, 2}), dict[int, str])
    assert_type(app.with_many.many([1]), dict[int, str])
    assert_type(app.with_many_of_any.many([1]), dict[int, str])
    assert_type(app.name.many, ManyItems[int, str])
    app.name.many(['x'])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    app.name.many(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.name.some([1])  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def many_of_several_parameters(app: App) -> None:
    assert_type(app.between.many([(1, 2)]), dict[tuple[int, int], str])
    assert_type(app.three.many([(1, 2, 'a')]), dict[tuple[int, int, str], str])
    assert_type(app.four.many([(1, 2, 3, 4)]), dict[tuple[int, int, int, int], str])
    app.between.many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    app.between.many([(1, '')])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    app.four.many([1])  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]


def many_of_parameters_with_defaults(app: App) -> None:
    assert_type(app.search.many(['a', 'b']), dict[str, list[str]])
    assert_type(app.search.many([('a', 2)]), dict[tuple[str, int], list[str]])
    assert_type(app.listing.many([1, 2]), dict[int, list[str]])


def wrong_many() -> None:
    def of_one(app: App) -> dict[int, str]:
        return {}

    def a_list(app: App, ids: list[int]) -> list[str]:
        return []

    orm_cached(policy=User, many=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(policy=User, many=of_one)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(policy=User, many=a_list)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
