"""A creator sees the database, and nothing that its request has in memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from sqlalchemy import inspect
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from onegov_ormcache import OrmCache, SessionManager
from tests.core.creators.shop import TRUTH, WAYS, Base, Item, Owner, Shop, fill, read, seen
from tests.support.backends import Backend

Pollution = Callable[[Shop], Any]


def json_in_place(shop: Shop) -> Any:
    owner = shop.session.get_one(Owner, 1)
    owner.settings['changed'] = True
    return owner


def merged_without_loading(shop: Shop) -> Any:
    with Session() as session:
        ghost = Owner(id=1, name='ghost', settings={'ghost': True}, items=[])
        make_transient_to_detached(ghost)
        session.add(ghost)
        return shop.session.merge(ghost, load=False)


def added_without_loading(shop: Shop) -> Any:
    ghost = Owner(id=1, name='ghost', settings={'ghost': True}, items=[])
    make_transient_to_detached(ghost)
    shop.session.add(ghost)
    return ghost


def relationship_loaded_before(shop: Shop) -> Any:
    owner = shop.session.get_one(Owner, 1)
    set_committed_value(owner, 'items', [])
    return owner


def attribute_loaded_before(shop: Shop) -> Any:
    owners = shop.session.query(Owner).all()
    for owner in owners:
        set_committed_value(owner, 'name', 'older')
    return owners


def request_cached_changed_in_place(shop: Shop) -> Any:
    shop.owner.settings['changed'] = True
    set_committed_value(shop.owner, 'items', [])
    return shop.owner


def request_cached_replaced(shop: Shop) -> Any:
    set_committed_value(shop.owner, 'name', 'older')
    shop.session.expunge(shop.owner)


def populated_again(shop: Shop) -> Any:
    owners = shop.session.query(Owner).populate_existing().all()
    owners[0].settings['changed'] = True
    return owners


POLLUTIONS: list[Pollution] = [
    json_in_place,
    merged_without_loading,
    added_without_loading,
    relationship_loaded_before,
    attribute_loaded_before,
    request_cached_changed_in_place,
    request_cached_replaced,
    populated_again,
]


@pytest.mark.parametrize('pollute', POLLUTIONS, ids=lambda pollute: pollute.__name__)
def test_memory_of_the_request(
    cache: OrmCache, shop: Shop, tenant: str, pollute: Pollution
) -> None:
    """Each property is what the database has, for the request itself and for all others, and
    it is stored."""
    with cache.scope(tenant):
        kept = pollute(shop)
        assert seen(shop) == TRUTH
        del kept
    assert read(cache, tenant, lambda: seen(shop)) == TRUTH
    assert {name: shop.runs.count(name) for name in WAYS} == dict.fromkeys(WAYS, 1)


@pytest.mark.parametrize('way', WAYS)
def test_objects_older_than_the_snapshot(
    servers_backend: Backend, stack: ExitStack, tenant: str, way: str
) -> None:
    """Objects that outlive a commit, because they do not expire, show in no value that was
    computed after it."""
    dsn = servers_backend.settings['dsn']
    settings = {**servers_backend.settings, 'base': Base}
    manager = SessionManager(dsn, Base, session_options={'expire_on_commit': False})
    stack.callback(manager.dispose)
    cache = stack.enter_context(OrmCache(session_manager=manager, **settings))
    other = stack.enter_context(OrmCache(**settings))
    fill(cache, tenant)
    shop, elsewhere = Shop(cache), Shop(other)
    with cache.scope(tenant) as scope:
        kept = [owner.items for owner in scope.session().query(Owner)], shop.owner
        scope.commit()
        with other.scope(tenant) as writing:
            owner = writing.session().get_one(Owner, 1)
            owner.name, owner.settings, owner.items = 'new', {}, []
            writing.commit()
        getattr(shop, way)
        assert kept[1].name == 'anna'
    now = read(other, tenant, lambda: getattr(elsewhere, way))
    assert now == read(cache, tenant, lambda: getattr(shop, way))
    assert 'anna' not in str(now)
    assert 'axe' not in str(now)


def test_pending_objects(cache: OrmCache, shop: Shop, tenant: str) -> None:
    """A creator sees what its request has not flushed yet; that is not stored."""
    with cache.scope(tenant) as scope:
        with scope.session().no_autoflush:
            owner = scope.session().get_one(Owner, 1)
            owner.name = 'new'
            scope.session().add(Item(name='bag', owner=owner))
            assert shop.by_get == ['new', {'a': 1}, ['axe', 'bow', 'bag']]
            assert shop.by_request_cached == ['new', {'a': 1}, ['axe', 'bow', 'bag']]
    assert read(cache, tenant, lambda: seen(shop)) == TRUTH


def test_objects_of_a_run_belong_to_it(cache: OrmCache, shop: Shop, tenant: str) -> None:
    """Objects of a creator are not those of its request or of another creator, and are detached
    when it has ended; a session that it keeps refuses to be used."""
    kept: list[Any] = []

    def note(way: Callable[[Shop], Any]) -> None:
        kept.append((shop.session, shop.owner))

    with cache.scope(tenant):
        view = shop.session, shop.owner
        for name in 'by_get', 'by_request_cached':
            original = getattr(Shop, name).creator
            descriptor = getattr(Shop, name)
            descriptor.creator = lambda self, create=original: (note(create), create(self))[1]
            try:
                getattr(shop, name)
            finally:
                descriptor.creator = original
        owners = [view[1], *(owner for _, owner in kept)]
        assert len({id(owner) for owner in owners}) == 3
        assert shop.session is view[0]
        assert shop.owner is view[1]
        assert view[1] in view[0]
        for session, owner in kept:
            assert inspect(owner).detached
            with pytest.raises(Exception, match='permanently closed'):
                session.query(Owner).all()
