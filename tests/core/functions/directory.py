"""An app with functions of the users' ids, which the tests read one by one and at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.support.counting import Runs
from tests.support.models import User


class App(OrmCacheApp):
    """Its functions read the names of users."""

    runs: Runs
    #: Called by each creator with its argument.
    meanwhile: Callable[[Any], object] = staticmethod(lambda _: None)
    #: What `at_once` computes.
    many: Callable[[Any, Sequence[Any]], Any]

    def name_of(self, id: int) -> str | None:
        return self.session().scalar(select(User.name).where(User.id == id))

    @orm_cached(policy=rows(User.id))
    def user(self, id: int) -> list[Any]:
        self.runs('user')
        found = [self.name_of(id)]
        type(self).meanwhile(id)
        return found

    @orm_cached(policy=User)
    def in_words(self, id: int, language: str = 'de', *, loud: bool = False) -> list[Any]:
        self.runs('in_words')
        return [self.name_of(id), language, loud]

    @orm_cached(policy=rows(User.id), many=lambda app, ids: app.many(ids))
    def at_once(self, id: int) -> list[Any]:
        self.runs('at_once')
        return [self.name_of(id)]

    @orm_cached(policy='auto')
    def page_path(self, id: int) -> list[int]:
        self.runs('page_path')
        self.name_of(id)
        return [*(self.page_path(id // 2) if id > 1 else ()), id]

    @orm_cached(policy='auto')
    def round(self, id: int) -> int:
        return self.round((id + 1) % 3)

    @orm_cached(policy='auto')
    def everybody(self) -> list[Any]:
        self.runs('everybody')
        return list(self.user.many([1, 2, 3]).values())


def users(*ids: int) -> dict[int, list[str | None]]:
    """Return what `user` gives for these ids before anything has changed."""
    return {id: [f'user {id}'] for id in ids}
