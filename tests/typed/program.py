"""A user's program, as it stands in a project of its own: it knows only the installed package.

``test_typed.py`` checks it there, with what both checkers call strict, beside the checks in CI.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any, assert_type

from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Query, mapped_column

from onegov_ormcache import (
    OrmCacheApp,
    OrmCacheMiddleware,
    OrmCacheRequest,
    cached,
    orm_cached,
    request_cached,
    rows,
)


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = 'users'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Page(Base):
    __tablename__ = 'pages'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    text: Mapped[str]


def midnight(value: object) -> datetime:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    return datetime.combine(tomorrow, time(), UTC)


def is_shown(page: Page) -> bool:
    return bool(page.title)


class Request(OrmCacheRequest['Town']):
    #: Installed by the directive below.
    menu: list[str]

    @orm_cached(policy=Page, by_role=True)
    def titles(self) -> list[str]:
        return [title for (title,) in self.app.session().execute(select(Page.title))]


class Town(OrmCacheApp):
    request_class = Request

    #: Installed by the directive below.
    user_count: int

    @orm_cached(policy='on-table-change:users', expires=midnight)
    def names(self) -> list[str]:
        return list(self.session().scalars(select(User.name)))

    @orm_cached(policy=[Page, is_shown, 'auto'], frozen=True, vary=lambda town: town.schema)
    def texts(self) -> dict[str, list[str]]:
        return {}

    @orm_cached(policy=rows(Page.id))
    def title(self, id: int) -> str | None:
        return self.session().scalar(select(Page.title).where(Page.id == id))

    @request_cached
    def users(self) -> Query[User]:
        return self.session().query(User)

    @request_cached(merge=True)
    def first_user(self) -> User | None:
        return self.session().get(User, 1)


@Town.setting_section(section='orm_cache')
def orm_cache_settings() -> dict[str, Any]:
    return {'base': Base}


@Town.orm_cached(policy=User, name='user_count')
def count_users(app: Town) -> int:
    return app.session().query(User).count()


@Town.orm_cached(policy='auto', target='request')
def menu(request: Request) -> list[str]:
    return [*request.titles, str(request.app.user_count)]


@Town.path(path='')
class Root:
    pass


@Town.json(model=Root, prefetch='names', cached=cached(by_role=True))
def view(self: Root, request: Request) -> dict[str, Any]:
    assert_type(request.app, Town)
    assert_type(request.app.names, list[str])
    assert_type(request.app.title(1), str | None)
    assert_type(request.app.title.many([1, 2]), dict[int, str | None])
    assert_type(request.app.users, tuple[User, ...])
    assert_type(request.app.first_user, User | None)
    assert_type(request.titles, list[str])
    return {'menu': request.menu, 'texts': list(request.app.texts['Home'])}


def main() -> None:
    application = OrmCacheMiddleware(Town(), schema='main')
    with application.app.request_scope('main') as scope:
        assert_type(application.app.user_count, int)
        assert_type(menu(Request({}, application.app)), list[str])
        scope.commit()
    orm_cached(policy=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
