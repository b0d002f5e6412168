"""Somebody reads or fills the cache while a writer commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import Context
from functools import partial

from sqlalchemy import event, insert

from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.support.applications import committed
from tests.support.models import User

from .world import World, differs


def evict_before_commit(world: World) -> Iterator[str]:
    """Another process fills the cache between a writer's flush and its commit."""
    writer, reader = world.start()
    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        yield from differs('before the commit', world.names(reader), ['old'])
        scope.session().commit()
    yield from differs('after it', world.names(reader), ['new'])


def fill_between_doubt_and_commit(world: World) -> Iterator[str]:
    """Another process fills the cache while the writer's COMMIT is on its way."""
    writer, reader = world.start()
    with (
        before(Step.COMMIT, lambda: world.names(reader)),
        committed(writer, world.tenant) as scope,
    ):
        world.rename(scope)
    yield from differs('after the commit', world.names(reader), ['new'])


def read_between_commit_and_publish(world: World) -> Iterator[str]:
    """Another process reads after the database's COMMIT and before the tags get new versions."""
    writer, reader = world.start()
    world.names(reader)
    seen = []
    with (
        before(Step.PUBLISH, lambda: seen.append(world.names(reader))),
        committed(writer, world.tenant) as scope,
    ):
        world.rename(scope)
    yield from differs('durable, not published', seen, [['new']])
    yield from differs('afterwards', world.names(reader), ['new'])


def slow_fill_after_a_change(world: World) -> Iterator[str]:
    """A creator has read, then a change is committed, then the old value is to be stored."""
    writer, reader = world.start()

    def rename() -> None:
        with committed(writer, world.tenant) as scope:
            world.rename(scope)

    # in a context of its own, as its scope is another request's, and not part of the run
    reader.meanwhile = partial(Context().run, rename)
    world.names(reader)
    yield from differs('the same process', world.names(reader), ['new'])
    yield from differs('another process', world.names(writer), ['new'])


def after_commit_hook(world: World) -> Iterator[str]:
    """Code that runs after the commit, such as mail or jobs, already finds the new value."""
    writer, reader = world.start()
    world.names(reader)
    seen = []
    with writer.request_scope(world.tenant) as scope:
        session = scope.session()
        event.listen(session, 'after_commit', lambda session: seen.append(world.names(reader)))
        world.rename(scope)
        session.commit()
    yield from differs('in the hook', seen, [['new']])


def snapshot_of_an_epoch(world: World) -> Iterator[str]:
    """A process that knows the tenant's last epoch learns of every change."""
    writer, reader = world.start()
    for number in range(3):
        world.names(reader)
        with committed(writer, world.tenant) as scope:
            world.rename(scope, str(number))
        yield from differs('after the change', world.names(reader), [str(number)])


def two_connections_in_one_scope(world: World) -> Iterator[str]:
    """A session and a Core connection of one scope change the same table, each on its own."""
    writer, reader = world.start()
    world.names(reader)
    with writer.request_scope(world.tenant) as scope:
        with writer.session_manager.engine.connect() as connection:
            connection.execute(insert(User).values(name='core'))
            scope.session().add(User(name='orm'))
            yield from differs('its own session', writer.names, ['old', 'orm'])
            scope.session().commit()
            yield from differs('one is committed', world.names(reader), ['old', 'orm'])
            connection.commit()
        yield from differs('both are', world.names(reader), ['core', 'old', 'orm'])
        yield from differs('here too', writer.names, ['core', 'old', 'orm'])
