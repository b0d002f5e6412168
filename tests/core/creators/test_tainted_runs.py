"""A run that gets something which its statements do not show is not stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.orm import make_transient_to_detached

from onegov_ormcache import OrmCache, orm_cached
from onegov_ormcache.errors import OrmCacheError
from tests.core.creators.shop import Item, Owner, Shop, read
from tests.support.counting import Runs

Creator = Callable[['Taking'], Any]


class Taking:
    """An object whose properties get their values from elsewhere."""

    def __init__(self, cache: OrmCache, tenant: str, create: Creator) -> None:
        self.orm_cache = cache
        self.tenant = tenant
        self.create = create
        self.shop = Shop(cache)
        self.runs = Runs()
        self.stash: Any = None

    @property
    def session(self) -> Any:
        return self.orm_cache.session()

    def _taken(self) -> Any:
        self.runs('run')
        self.session.scalars(select(Owner.id)).all()
        return self.create(self)

    @orm_cached(policy='auto')
    def auto(self) -> Any:
        return self._taken()

    @orm_cached(policy=[Owner, Item])
    def named(self) -> Any:
        return self._taken()

    @orm_cached(policy='auto')
    def outer(self) -> Any:
        return self.auto

    @orm_cached(policy='auto')
    def careless(self) -> Any:
        try:
            self.auto
        except ZeroDivisionError:
            return 'failed'
        return 'fine'


def lazy_load_of_a_stashed_object(taking: Taking) -> Any:
    return [item.name for item in taking.stash[0].items]


def refresh_of_a_stashed_object(taking: Taking) -> Any:
    taking.stash[1].expire(taking.stash[0])
    return taking.stash[0].name


def session_of_the_request(taking: Taking) -> Any:
    return taking.stash[1].scalars(select(Owner.name)).all()


def identity_map_of_the_request(taking: Taking) -> Any:
    return taking.stash[1].get_one(Owner, 1).name


def query_of_the_request(taking: Taking) -> Any:
    return taking.stash[1].query(Owner.name)


def detached_object(taking: Taking) -> Any:
    ghost = Owner(id=2, name='ghost', settings={})
    make_transient_to_detached(ghost)
    taking.session.add(ghost)
    return taking.session.get(Owner, 2).name


def merge_of_a_stashed_object(taking: Taking) -> Any:
    return taking.session.merge(taking.stash[0], load=False).name


def scope_of_the_same_tenant(taking: Taking) -> Any:
    with taking.orm_cache.scope(taking.tenant):
        return taking.shop.by_get


def scope_of_another_tenant(taking: Taking) -> Any:
    with taking.orm_cache.scope(f'{taking.tenant}x') as scope:
        return scope.session().query(Owner).count()


def scope_around_the_request(taking: Taking) -> Any:
    return taking.stash[2].session().query(Owner).count()


def new_object(taking: Taking) -> Any:
    taking.session.add(Item(name='new'))


def bulk_statement(taking: Taking) -> Any:
    taking.session.execute(insert(Item).values(name='new'))


def change_of_an_object(taking: Taking) -> Any:
    taking.session.get(Owner, 1).settings = {'b': 2}


def change_of_a_stashed_object(taking: Taking) -> Any:
    taking.stash[0].settings = {'b': 2}
    return taking.shop.by_get


def change_without_rows(taking: Taking) -> Any:
    taking.session.execute(update(Item).where(Item.id == 4711).values(name='x'))


def commit(taking: Taking) -> Any:
    taking.session.commit()


def rollback(taking: Taking) -> Any:
    taking.session.rollback()


def core_connection(taking: Taking) -> Any:
    with taking.orm_cache.session_manager.engine.connect() as connection:
        return connection.scalars(select(Owner.name)).all()


TAINTS: dict[Creator, str] = {
    lazy_load_of_a_stashed_object: "the request's session",
    refresh_of_a_stashed_object: "the request's session",
    session_of_the_request: "the request's session",
    identity_map_of_the_request: "the request's session",
    query_of_the_request: "the request's session",
    detached_object: 'added an object',
    merge_of_a_stashed_object: 'added an object',
    scope_of_the_same_tenant: 'used the scope of',
    scope_of_another_tenant: 'used the scope of',
    scope_around_the_request: 'used the scope of',
    new_object: 'changed the database',
    bulk_statement: 'changed the database',
    change_of_an_object: 'changed the database',
    change_of_a_stashed_object: "the request's session",
    change_without_rows: 'changed the database',
    commit: 'a transaction ended',
    rollback: 'a transaction ended',
    core_connection: 'a transaction ended',
}


@pytest.mark.parametrize('name', ['auto', 'named', 'outer'])
@pytest.mark.parametrize('create', TAINTS, ids=lambda create: create.__name__)
def test_tainted_run(
    cache: OrmCache, tenant: str, caplog: Any, create: Creator, name: str
) -> None:
    """A tainted run is not stored, whatever its policy; the reason is logged once."""
    taking = Taking(cache, tenant, create)
    for _ in range(3):
        with cache.scope(tenant) as around, cache.scope(tenant) as scope:
            owner = scope.session().get_one(Owner, 1)
            taking.stash = owner, scope.session(), around
            getattr(taking, name)
            taking.stash = None
            scope.session().rollback()
            around.session().rollback()
    assert taking.runs.count('run') == 3
    where = f'Taking.{"auto" if name == "outer" else name} is not stored'
    messages = [m for r in caplog.records if where in (m := r.getMessage())]
    assert len(messages) == 1
    assert TAINTS[create] in messages[0]


def test_run_within_that_fails(cache: OrmCache, tenant: str) -> None:
    """A run that catches the error of one within it depends on what that one has read."""

    def fail_on_items(taking: Taking) -> None:
        if taking.session.query(Item).count():
            raise ZeroDivisionError

    taking = Taking(cache, tenant, fail_on_items)
    for _ in range(2):
        assert read(cache, tenant, lambda: taking.careless) == 'failed'
    assert taking.runs.count('run') == 1
    with cache.scope(tenant) as scope:
        scope.session().query(Item).delete()
        scope.commit()
    assert read(cache, tenant, lambda: taking.careless) == 'fine'


def test_run_of_another_thread(cache: OrmCache, tenant: str) -> None:
    """Each run has a verdict of its own: that of another thread, which ends at the same time,
    does not count."""
    taking = Taking(cache, tenant, session_of_the_request)
    prop = cache.registry.property_of(Taking.auto, Taking)

    class Racing(dict[str, str]):
        """Is updated between a run's verdict and its fill, as the other thread goes on."""

        def update(self, *arguments: Any, **more: Any) -> None:
            prop.never_stored = False
            super().update(*arguments, **more)

    for _ in range(2):
        with cache.scope(tenant) as scope:
            taking.stash = None, scope.session()
            scope.session().connection()
            scope.computed = Racing()
            taking.auto
            taking.stash = None
    assert taking.runs.count('run') == 2


def test_options_of_the_connection(cache: OrmCache, tenant: str) -> None:
    """A creator can't change the options of the connection, which is its request's."""

    def create(taking: Taking) -> Any:
        return taking.session.connection(execution_options={'stream_results': True})

    taking = Taking(cache, tenant, create)
    with pytest.raises(OrmCacheError, match=r"'stream_results': True.* give the options"):
        read(cache, tenant, lambda: taking.auto)
