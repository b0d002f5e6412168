"""A shop with cached properties that read it in every way that leaves objects in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import JSON, ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, joinedload, mapped_column, relationship

from onegov_ormcache import OrmCache, orm_cached, request_cached
from tests.support.counting import Runs


class Base(DeclarativeBase):
    """The declarative base of the shop's tables."""


class Owner(Base):
    """An owner of items, with settings that are changed in place unnoticed."""

    __tablename__ = 'owners'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)
    items: Mapped[list[Item]] = relationship(back_populates='owner', order_by='Item.id')


class Item(Base):
    """An item of an owner."""

    __tablename__ = 'items'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int | None] = mapped_column(ForeignKey('owners.id'))
    owner: Mapped[Owner | None] = relationship(back_populates='items')


class Shop:
    """An object with cached properties, each computed in another way."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache
        self.runs = Runs()
        #: What a view has left here for creators.
        self.stash: Any = None

    @property
    def session(self) -> Any:
        return self.orm_cache.session()

    @request_cached
    def owner(self) -> Owner:
        return self.session.get_one(Owner, 1)  # type: ignore[no-any-return]

    @orm_cached(policy='auto')
    def by_get(self) -> Any:
        self.runs('by_get')
        owner = self.session.get(Owner, 1)
        return [owner.name, owner.settings, [item.name for item in owner.items]]

    @orm_cached(policy=[Owner, Item])
    def by_query(self) -> Any:
        self.runs('by_query')
        owners = self.session.query(Owner).order_by(Owner.id)
        return [[owner.name, owner.settings, len(owner.items)] for owner in owners]

    @orm_cached(policy='auto')
    def by_joined_load(self) -> Any:
        self.runs('by_joined_load')
        query = select(Owner).options(joinedload(Owner.items)).order_by(Owner.id)
        owners = self.session.scalars(query).unique()
        return [[owner.name, owner.settings, len(owner.items)] for owner in owners]

    @orm_cached(policy=[Owner, Item])
    def by_request_cached(self) -> Any:
        self.runs('by_request_cached')
        return [self.owner.name, self.owner.settings, [item.name for item in self.owner.items]]

    @orm_cached(policy='auto')
    def by_select(self) -> Any:
        self.runs('by_select')
        return select(Owner.name, Owner.settings).order_by(Owner.id)

    @orm_cached(policy='auto')
    def by_rows_of_a_query(self) -> Any:
        self.runs('by_rows_of_a_query')
        query = self.session.query(Item.name, Owner.name.label('owner'))
        return query.join(Owner).order_by(Item.id)

    @orm_cached(policy='auto')
    def by_another(self) -> Any:
        self.runs('by_another')
        return [self.by_get, self.owner.name]


#: The names of all orm-cached properties of the shop.
WAYS = [name for name in vars(Shop) if name.startswith('by_')]

#: What each of them returns of the shop as :func:`fill` leaves it.
TRUTH: dict[str, Any] = {
    'by_get': ['anna', {'a': 1}, ['axe', 'bow']],
    'by_query': [['anna', {'a': 1}, 2], ['berta', {}, 0]],
    'by_joined_load': [['anna', {'a': 1}, 2], ['berta', {}, 0]],
    'by_request_cached': ['anna', {'a': 1}, ['axe', 'bow']],
    'by_select': [('anna', {'a': 1}), ('berta', {})],
    'by_rows_of_a_query': [('axe', 'anna'), ('bow', 'anna')],
    'by_another': [['anna', {'a': 1}, ['axe', 'bow']], 'anna'],
}


def fill(cache: OrmCache, tenant: str) -> None:
    """Fill the tables."""
    with cache.scope(tenant) as scope:
        anna = Owner(id=1, name='anna', settings={'a': 1})
        anna.items = [Item(name='axe'), Item(name='bow')]
        scope.session().add_all([anna, Owner(id=2, name='berta', settings={})])
        scope.commit()


def read(cache: OrmCache, tenant: str, get: Callable[[], Any]) -> Any:
    """Return what `get` returns in a scope of its own."""
    with cache.scope(tenant):
        return get()


def seen(shop: Shop) -> dict[str, Any]:
    """Read all ways in the current scope; rows of a query are compared as tuples."""
    values = {name: getattr(shop, name) for name in WAYS}
    for name in 'by_select', 'by_rows_of_a_query':
        values[name] = [tuple(row) for row in values[name]]
    return values
