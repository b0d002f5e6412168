"""Policies. A wrong one is an error where it is declared, as far as its type tells; of a text, a
class or a name only the application knows."""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, Table

from onegov_ormcache import orm_cached, rows
from onegov_ormcache.core.policies import CachePolicy
from tests.support.models import Base, User

table = Table('numbers', MetaData(), Column('id', Integer, primary_key=True))
several = [User, Base]
policy: CachePolicy = [User, 'auto']


def is_admin(user: User) -> bool:
    return user.name == 'admin'


def right() -> None:
    orm_cached('auto')
    orm_cached('on-table-change:users')
    orm_cached(User)
    orm_cached(table)
    orm_cached(User.__table__)
    orm_cached(rows(User.id))
    orm_cached(rows(table.c.id, argument='id'))
    orm_cached(is_admin)
    orm_cached(lambda user: user.name == 'admin')
    orm_cached([User, 'auto', table, rows(User.id), is_admin, ['auto', [User]]])
    orm_cached((User, 'auto'))
    orm_cached(several)
    orm_cached(policy)


def of_two(user: User, other: User) -> bool:
    return True


def of_text(user: User) -> str:
    return ''


def wrong() -> None:
    orm_cached(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(b'auto')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    orm_cached([User, [None]])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    orm_cached({'users': User})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(User.id)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(of_two)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(of_text)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    orm_cached(lambda: True)  # type: ignore[misc, arg-type]  # pyright: ignore[reportArgumentType]
    rows(User)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    rows('users.id')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    rows(User.id, argument=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
