"""A function policy misses no row that the database deletes from the table of the object."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.applications import Applications, committed, value


class Base(DeclarativeBase):
    """Tables whose foreign keys lead back to them."""


class Page(Base):
    """A page is deleted with the page above it."""

    __tablename__ = 'pages'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey('pages.id', ondelete='CASCADE'))


class Owner(Base):
    """An owner is deleted with the owner of the thing that it belongs to."""

    __tablename__ = 'owners'

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    thing_id: Mapped[int | None] = mapped_column(
        ForeignKey('things.id', ondelete='CASCADE', use_alter=True, name='owner_thing')
    )


class Thing(Base):
    """A thing is deleted with its owner."""

    __tablename__ = 'things'

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey('owners.id', ondelete='CASCADE'))


class App(OrmCacheApp):
    """Has a value of the rows below, which no object of the flush is."""

    @orm_cached(policy=lambda obj: getattr(obj, 'title', '') == 'below')
    def below(self) -> list[str]:
        pages = select(Page.title).where(Page.title == 'below')
        owners = select(Owner.title).where(Owner.title == 'below')
        return [*self.session().scalars(pages), *self.session().scalars(owners)]


@pytest.mark.parametrize('cls', [Page, Owner])
def test_rows_below_a_deleted_one(
    applications: Applications, tenant: str, cls: Any
) -> None:
    """The rows that a foreign key deletes below a deleted object are told, though their table
    is that of the object."""
    app = applications.start(App, base=Base)
    with committed(app, tenant) as scope:
        session = scope.session()
        if cls is Page:
            session.add_all([Page(id=1, title='above'), Page(id=2, title='below', parent_id=1)])
        else:
            session.add(Owner(id=1, title='above'))
            session.flush()
            session.add(Thing(id=1, owner_id=1))
            session.flush()
            session.add(Owner(id=2, title='below', thing_id=1))
    assert value(app, tenant, lambda app: app.below) == ['below']
    with committed(app, tenant) as scope:
        scope.session().delete(scope.session().get_one(cls, 1))
    assert value(app, tenant, lambda app: app.below) == []
