"""Properties that are first read, and so bound, in a transaction that has changed their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import select

from onegov_ormcache import OrmCache, orm_cached, rows
from tests.support.applications import Applications
from tests.support.models import User


class Town:
    """Its properties are bound when they are first read, because its cache does not know it."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache

    @orm_cached(policy=rows(User.id))
    def by_row(self, id: int) -> str | None:
        return self.orm_cache.session().scalar(select(User.name).where(User.id == id))

    @orm_cached(policy=lambda user: user.id == 1)
    def by_function(self) -> str | None:
        return self.orm_cache.session().scalar(select(User.name).where(User.id == 1))


READS: list[Callable[[Town], str | None]] = [lambda t: t.by_row(1), lambda t: t.by_function]


@pytest.fixture
def caches(on_servers: Applications, tenant: str) -> Iterator[tuple[OrmCache, OrmCache]]:
    """The caches of two processes; there is one user."""
    settings = on_servers.backend.settings
    with OrmCache(**settings, base=User) as first, OrmCache(**settings, base=User) as second:
        with first.scope(tenant):
            first.session().add(User(id=1, name='old'))
            first.session().commit()
        yield first, second


@pytest.mark.parametrize('read', READS, ids=['row', 'function'])
@pytest.mark.parametrize('is_cached', [False, True])
def test_a_property_that_is_bound_after_its_change(
    caches: tuple[OrmCache, OrmCache],
    tenant: str,
    read: Callable[[Town], str | None],
    is_cached: bool,
) -> None:
    """The transaction sees what it has changed before, and nobody else does until it commits."""
    first, second = caches
    town, late = Town(first), Town(second)
    if is_cached:
        with first.scope(tenant):
            assert read(town) == 'old'
    with second.scope(tenant):
        second.session().get_one(User, 1).name = 'new'
        assert read(late) == 'new'
        with first.scope(tenant):
            assert read(town) == 'old'
        second.session().rollback()
        assert read(late) == 'old'
    with first.scope(tenant):
        assert read(town) == 'old'
