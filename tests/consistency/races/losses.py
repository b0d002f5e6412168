"""The store forgets what it was told, or some of it, or comes back as it was before."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import Context
from functools import partial

from onegov_ormcache.steps import Step
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import committed
from tests.support.outside import outside

from .world import World, commit_unseen, differs, driver_connection


def lost_doubt(world: World) -> Iterator[str]:
    """The store forgets a doubt; a reader fills; the writer commits, and dies."""
    writer, reader = world.start()

    def forget_and_read() -> None:
        world.redis.client().flushall()
        for _ in range(3):
            world.names(reader)

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        try:
            with before(Step.COMMIT, forget_and_read), before(Step.PUBLISH, die):
                scope.session().commit()
        except Died:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])


def fill_from_within_the_quarantine(world: World) -> Iterator[str]:
    """The same, but the reader's creator is slow, and ends after the quarantine."""
    writer, reader = world.start()

    def forget_and_read() -> None:
        world.redis.client().flushall()
        # in a context of its own, as its scope is another request's, and not part of the run
        reader.meanwhile = partial(Context().run, commit_and_die)
        world.names(reader)

    def commit_and_die() -> None:
        commit_unseen(connection)
        reader.orm_cache.settler._asked.clear()
        with reader.request_scope(world.tenant) as other:
            other.session().connection()

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        connection = driver_connection(scope)
        try:
            with before(Step.COMMIT, lambda: (forget_and_read(), die())):
                scope.session().commit()
        except Died:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])


def read_in_the_quarantine(world: World) -> Iterator[str]:
    """A reader computes in the quarantine, the writer commits and dies, the reader asks again."""
    writer, reader = world.start()

    def forget_and_read() -> None:
        world.redis.client().flushall()
        world.names(reader)

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        try:
            with before(Step.COMMIT, forget_and_read), before(Step.PUBLISH, die):
                scope.session().commit()
        except Died:
            pass
    # still in quarantine: nobody has asked for a connection since
    yield from differs('after the commit', world.names(reader), ['new'])


def server_rolled_back_to_a_dump(world: World) -> Iterator[str]:
    """Redis comes back from a dump that is older than what it acknowledged."""
    writer, reader = world.start()
    world.names(reader)
    world.names(reader)
    world.redis.save()
    with committed(writer, world.tenant) as scope:
        world.rename(scope)
    world.redis.kill()
    world.redis.start()
    for app in reader, writer:
        yield from differs('after the restart', world.names(app), ['new'])


def keys_evicted_one_by_one(world: World) -> Iterator[str]:
    """Redis evicts any one of the keys, before or after a change."""
    writer, reader = world.start()
    for round_, when in enumerate(('before', 'after')):
        world.names(reader)
        world.names(reader)
        keys = world.redis.client().keys('*')
        for number, key in enumerate(sorted(keys)):
            expected = f'{round_}-{number}'
            if when == 'before':
                world.redis.client().delete(key)
            with committed(writer, world.tenant) as scope:
                world.rename(scope, expected)
            if when == 'after':
                world.redis.client().delete(key)
            for app in reader, writer:
                yield from differs(f'{key!r} {when}', world.names(app), [expected])
            world.names(reader)


def schema_replaced_by_another_program(world: World) -> Iterator[str]:
    """Another program drops the tenant's schema and makes it again; later it renames schemas, so
    that the tenant's name is that of a copy. Afterwards one process begins a transaction."""
    writer, reader = world.start()
    kept = f'{world.tenant}_kept'
    copied = [
        f'CREATE SCHEMA "{kept}"',
        *(
            f'CREATE TABLE "{kept}".{table} (LIKE "{world.tenant}".{table} INCLUDING ALL)'
            for table in ('users', 'documents')
        ),
        f'INSERT INTO "{kept}".users (id, name) VALUES (1, \'renamed\')',
    ]
    replaced = [
        f'CREATE SCHEMA "{kept}_new"',
        *(
            f'CREATE TABLE "{kept}_new".{table} (LIKE "{world.tenant}".{table} INCLUDING ALL)'
            for table in ('users', 'documents')
        ),
        f'DROP SCHEMA "{world.tenant}" CASCADE',
        f'ALTER SCHEMA "{kept}_new" RENAME TO "{world.tenant}"',
        f'INSERT INTO "{world.tenant}".users (id, name) VALUES (1, \'restored\')',
    ]
    renamed = [
        f'ALTER SCHEMA "{world.tenant}" RENAME TO "{kept}_new"',
        f'ALTER SCHEMA "{kept}" RENAME TO "{world.tenant}"',
    ]
    for statements, expected in ((copied, 'old'), (replaced, 'restored'), (renamed, 'renamed')):
        for app in reader, writer:
            world.names(app)
            world.names(app)
        with outside(world.applications.backend.settings['dsn'], world.tenant) as connection:
            for statement in statements:
                connection.execute(statement)
        with writer.request_scope(world.tenant) as scope:
            scope.session().connection()
        for app in reader, writer, reader:
            yield from differs('afterwards', world.names(app), [expected])
