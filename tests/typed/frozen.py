"""Frozen properties: lists are tuples, dicts are frozendicts and sets are frozensets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, assert_type

from frozendict import frozendict
from sqlalchemy import Row
from sqlalchemy.orm import Query

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.models import User


class Person(NamedTuple):
    id: int
    name: str


class App(OrmCacheApp):
    @orm_cached(policy=User, frozen=True)
    def number(self) -> int:
        return 1

    @orm_cached(policy=User, frozen=True)
    def people(self) -> list[Person]:
        return []

    @orm_cached(policy=User, frozen=True)
    def by_name(self) -> dict[str, int]:
        return {}

    @orm_cached(policy=User, frozen=True)
    def names(self) -> set[str]:
        return set()

    @orm_cached(policy=User, frozen=True)
    def of_page(self, page: int) -> list[str]:
        return []

    @orm_cached(policy=User, frozen=True)
    def lists(self) -> list[list[int]]:
        return []

    @orm_cached(policy=User, frozen=True)
    def dicts(self) -> list[dict[str, int]]:
        return []

    @orm_cached(policy=User, frozen=True)
    def sets(self) -> list[set[int]]:
        return []

    @orm_cached(policy=User, frozen=True)
    def dict_of_lists(self) -> dict[str, list[int]]:
        return {}

    @orm_cached(policy=User, frozen=True)
    def dict_of_dicts(self) -> dict[str, dict[int, str]]:
        return {}

    @orm_cached(policy=User, frozen=True)
    def dict_of_sets(self) -> dict[str, set[int]]:
        return {}

    @orm_cached(policy=User, frozen=True)
    def abstract(self) -> Sequence[Mapping[str, Sequence[int]]]:
        return []

    @orm_cached(policy=User, frozen=True)
    def rows(self) -> Query[Row[int, str]]:
        return self.session().query(User.id, User.name)

    @orm_cached(policy=User, frozen=False)
    def thawed(self) -> list[str]:
        return []


def values(app: App) -> None:
    assert_type(app.number, int)
    assert_type(app.people, tuple[Person, ...])
    assert_type(app.by_name, frozendict[str, int])
    assert_type(app.names, frozenset[str])
    assert_type(app.of_page(1), tuple[str, ...])
    assert_type(app.of_page.many([1]), dict[int, tuple[str, ...]])
    assert_type(app.rows, tuple[Row[int, str], ...])
    assert_type(app.thawed, list[str])


def one_level_below(app: App) -> None:
    assert_type(app.lists, tuple[tuple[int, ...], ...])
    assert_type(app.dicts, tuple[frozendict[str, int], ...])
    assert_type(app.sets, tuple[frozenset[int], ...])
    assert_type(app.dict_of_lists, frozendict[str, tuple[int, ...]])
    assert_type(app.dict_of_dicts, frozendict[str, frozendict[int, str]])
    assert_type(app.dict_of_sets, frozendict[str, frozenset[int]])


def abstract_types_stay(app: App) -> None:
    assert_type(app.abstract, Sequence[Mapping[str, Sequence[int]]])


def changes(app: App) -> None:
    app.people.append(Person(1, ''))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    app.by_name['a'] = 1  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    app.names.add('a')  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    app.dicts[0]['a'] = 1  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
