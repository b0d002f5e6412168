"""Tables with a schema of their own, which all tenants share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ForeignKey, delete, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from onegov_ormcache import OrmCacheApp, RetryableConflict, orm_cached
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.outside import until
from tests.support.servers import RedisServer
from tests.support.wires import Wire


class World:
    """Two tenants of one application, and two processes."""

    def __init__(self, applications: Applications, make_tenant: Callable[[str], str]) -> None:
        shared = make_tenant('shared')

        class Base(DeclarativeBase):
            pass

        class Country(Base):
            __tablename__ = 'countries'
            __table_args__ = {'schema': shared}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        class City(Base):
            __tablename__ = 'cities'
            id: Mapped[int] = mapped_column(primary_key=True)
            country_id: Mapped[int] = mapped_column(ForeignKey(Country.id, ondelete='CASCADE'))

        class Note(Base):
            __tablename__ = 'notes'
            id: Mapped[int] = mapped_column(primary_key=True)

        self.runs = runs = Runs()

        class App(OrmCacheApp):
            @orm_cached(policy=f'on-table-change:{shared}.countries')
            def countries(self) -> Any:
                runs('countries')
                query = self.session().query(Country.name).order_by(Country.name)
                return [row.name for row in query]

            @orm_cached(policy='auto')
            def automatic(self) -> int:
                runs('automatic')
                return self.session().query(Country).count()

            @orm_cached(policy=lambda obj: isinstance(obj, Country))
            def counted(self) -> int:
                return self.session().query(Country).count()

            @orm_cached(policy=City)
            def cities(self) -> int:
                runs('cities')
                return self.session().query(City).count()

            @orm_cached(policy=Note)
            def notes(self) -> int:
                runs('notes')
                return self.session().query(Note).count()

        self.country, self.city, self.note, self.base = Country, City, Note, Base
        self.applications, self.app_class = applications, App
        self.one, self.two = make_tenant('one'), make_tenant('two')

    def start(self, **settings: Any) -> tuple[Any, Any]:
        app = self.applications.start(self.app_class, base=self.base, **settings)
        return app, self.applications.elsewhere(app)


@pytest.fixture
def world(on_servers: Applications, make_tenant: Callable[[str], str]) -> World:
    return World(on_servers, make_tenant)


def settled(app: Any, tenant: str, read: Callable[[Any], Any]) -> Any:
    """Return what is read when the quarantines of all births have ended."""
    for _ in range(3):
        found = value(app, tenant, read)
    return found


def test_change_by_one_tenant_evicts_for_all(world: World) -> None:
    """A change of a shared table, by any tenant and process, evicts for all tenants; a change of
    a tenant's own table evicts for that tenant alone."""
    app, other = world.start()
    for tenant in world.one, world.two:
        for reader in app, other:
            assert settled(reader, tenant, lambda a: (a.countries, a.automatic, a.counted)) == (
                [],
                0,
                0,
            )
            assert settled(reader, tenant, lambda a: (a.cities, a.notes)) == (0, 0)
    change(app, world.one, world.country(id=1, name='a'))
    for tenant in world.one, world.two:
        for reader in app, other:
            assert value(reader, tenant, lambda a: (a.countries, a.automatic, a.counted)) == (
                ['a'],
                1,
                1,
            )
    ran = world.runs.total
    change(app, world.one, world.note(id=1))
    assert value(other, world.two, lambda a: (a.countries, a.notes)) == (['a'], 0)
    assert world.runs.total == ran
    assert value(other, world.one, lambda a: (a.countries, a.notes)) == (['a'], 1)
    assert world.runs.total == ran + 1
    with committed(other, world.two) as scope:
        scope.session().execute(update(world.country).values(name='b'))
    assert value(app, world.one, lambda a: a.countries) == ['b']


def test_cascade_into_other_tenants(world: World) -> None:
    """If a deleted row of a shared table cascades to rows of all tenants, all are evicted."""
    app, other = world.start()
    change(app, world.one, world.country(id=1, name='a'))
    for tenant in world.one, world.two:
        change(app, tenant, world.city(id=1, country_id=1))
        assert settled(other, tenant, lambda a: a.cities) == 1
    with committed(app, world.one) as scope:
        scope.session().execute(delete(world.country))
    for tenant in world.one, world.two:
        assert value(other, tenant, lambda a: a.cities) == 0


def test_warm_request_asks_for_both_snapshots(
    world: World, redis_ops: Any, db_queries: Any
) -> None:
    """A warm request costs a command for the tenant and one for each shared schema."""
    app, _ = world.start()
    settled(app, world.one, lambda a: (a.countries, a.notes))
    with redis_ops(2), db_queries(0):
        value(app, world.one, lambda a: (a.countries, a.notes))


@pytest.mark.parametrize('step', [Step.COMMIT, Step.PUBLISH])
def test_dead_writer_of_a_shared_table(world: World, step: Step) -> None:
    """Any tenant that meets a dead writer's doubt about a shared table settles it."""
    app, other = world.start()
    settled(other, world.two, lambda a: a.countries)
    with app.request_scope(world.one) as scope:
        scope.session().add(world.country(id=1, name='a'))
        with pytest.raises(Died), before(step, die):
            scope.session().commit()
    expected = ['a'] if step is Step.PUBLISH else []
    for tenant in world.two, world.one:
        assert value(other, tenant, lambda a: a.countries) == expected
    other.orm_cache.settler._asked.clear()
    settled(other, world.two, lambda a: a.countries)
    ran = world.runs.count('countries')
    assert value(other, world.two, lambda a: a.countries) == expected
    assert world.runs.count('countries') == ran


def test_lost_store_and_shared_tables(world: World, own_redis: RedisServer) -> None:
    """A doubt of a shared table that the store forgets leaves nothing stale."""
    app, other = world.start(redis_url=own_redis.url, lock_timeout=0.2)
    settled(other, world.two, lambda a: a.countries)

    def forget() -> None:
        own_redis.client().flushall()
        settled(other, world.two, lambda a: a.countries)

    with app.request_scope(world.one) as scope:
        scope.session().add(world.country(id=1, name='a'))
        with pytest.raises(Died), before(Step.COMMIT, forget), before(Step.PUBLISH, die):
            scope.session().commit()
    assert value(other, world.two, lambda a: a.countries) == ['a']


@pytest.mark.parametrize('first', [0, 1])
def test_write_skew_over_shared_tables(world: World, first: int) -> None:
    """Two SERIALIZABLE writers each read through the cache the table that the other changes:
    one must try again, also if one of the tables is shared."""
    apps = world.start(engine_options={'isolation_level': 'SERIALIZABLE'})
    for app in apps:
        settled(app, world.one, lambda a: (a.countries, a.notes))
    app, other = apps
    refused = 0
    with app.request_scope(world.one) as writer:
        assert app.notes == 0
        writer.session().add(world.country(id=1, name='a'))
        writer.session().flush()
        with other.request_scope(world.one) as second:
            assert other.countries == []
            second.session().add(world.note(id=1))
            second.session().flush()
            for scope in (writer, second) if first else (second, writer):
                with scope.active():
                    try:
                        scope.session().commit()
                    except RetryableConflict:
                        refused += 1
    assert refused == 1
    tags = app.orm_cache.tags
    assert not tags.snapshot(world.one).doubts


def test_changes_in_an_outage(world: World, own_redis: RedisServer) -> None:
    """Without Redis, a change is left where its table lies, and reaches all tenants."""
    with Wire(own_redis.url) as wire:
        app = world.applications.start(world.app_class, base=world.base, redis_url=wire.url)
        other = world.applications.start(
            world.app_class, base=world.base, redis_url=own_redis.url
        )
        for tenant in world.one, world.two:
            assert settled(other, tenant, lambda a: (len(a.countries), a.counted, a.notes)) == (
                0,
                0,
                0,
            )
        wire.cut()
        change(app, world.one, world.country(id=1, name='a'), world.note(id=1))
        until(lambda: value(other, world.two, lambda a: a.countries) == ['a'], 30)
        assert value(other, world.two, lambda a: (a.counted, a.notes)) == (1, 0)
        assert value(other, world.one, lambda a: (a.counted, a.notes)) == (1, 1)
