"""A transaction or a savepoint ends, and what was read before must not be used after it."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.applications import committed, value

from .world import World, differs


def recached_rollback(world: World) -> Iterator[str]:
    """A writer reads its own change through the cache, and rolls back."""
    writer, reader = world.start()
    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        yield from differs('its own change', writer.names, ['new'])
        yield from differs('elsewhere', world.names(reader), ['old'])
        scope.session().rollback()
        yield from differs('after the rollback', writer.names, ['old'])
    yield from differs('later', world.names(writer), ['old'])


def carried_over_a_commit(world: World) -> Iterator[str]:
    """A value read before a commit is used by another property after it."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant) as scope:
        yield from differs('first', reader.names, ['old'])
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        scope.session().commit()
        yield from differs('in the new transaction', reader.names, ['new'])
        yield from differs('within another', reader.outer, {'names': ['new']})
    yield from differs('later', value(writer, world.tenant, lambda a: a.outer), {'names': ['new']})


def request_cached_over_a_commit(world: World) -> Iterator[str]:
    """A request-cached value of an earlier transaction is used by an orm-cached property."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant) as scope:
        yield from differs('first', reader.kept, ['old'])
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        scope.session().commit()
        reader.from_kept  # may be old here: request-cached values live as long as the scope
    yield from differs('later', value(writer, world.tenant, lambda a: a.from_kept), ['new'])


def transaction_ends_in_a_creator(world: World) -> Iterator[str]:
    """The transaction ends while a creator runs, after the creator has read."""
    writer, reader = world.start()

    def commit_both() -> None:
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        reader.session().commit()

    reader.meanwhile = commit_both
    world.names(reader)
    for app in reader, writer:
        yield from differs('later', world.names(app), ['new'])


def mutation_carried_over(world: World) -> Iterator[str]:
    """A view changes its copy of a value; the change is not stored within another property."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant):
        reader.names.append('mine')
        yield from differs('its own copy', reader.names, ['old', 'mine'])
        yield from differs('within another', reader.outer, {'names': ['old']})
    yield from differs('later', value(writer, world.tenant, lambda a: a.outer), {'names': ['old']})


def savepoint(world: World) -> Iterator[str]:
    """A change that was undone by a savepoint is not seen any more, by anyone."""
    writer, reader = world.start()
    with writer.request_scope(world.tenant) as scope:
        nested = scope.session().begin_nested()
        world.rename(scope)
        yield from differs('within', writer.names, ['new'])
        nested.rollback()
        yield from differs('undone', writer.names, ['old'])
        scope.session().commit()
    yield from differs('later', world.names(reader), ['old'])


def ends_without_a_statement(world: World) -> Iterator[str]:
    """A transaction that read from the cache alone is rolled back, committed or closed."""
    writer, reader = world.start()
    for number, end in enumerate(('rollback', 'commit', 'close')):
        world.names(reader)
        with reader.request_scope(world.tenant) as scope:
            before_it = reader.names
            with committed(writer, world.tenant) as writing:
                world.rename(writing, end)
            yield from differs('the same transaction', reader.names, before_it)
            getattr(scope.session(), end)()
            yield from differs(f'{number}: after the {end}', reader.names, [end])
