"""A transaction's view of the database, or an object in its memory, is older than a commit."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text

from onegov_ormcache import RetryableConflict
from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.support.applications import committed, value
from tests.support.models import Document, User

from .world import World, differs


def fill_from_an_old_view(world: World) -> Iterator[str]:
    """A transaction whose view is older than a commit fills after it."""
    for level in 'REPEATABLE READ', 'SERIALIZABLE':
        writer, reader = world.start(level)
        with reader.request_scope(world.tenant) as scope:
            scope.session().execute(text('SELECT 1 FROM users')).all()
            with committed(writer, world.tenant) as writing:
                world.rename(writing)
            yield from differs('its own view', reader.names, ['old'])
        yield from differs(level, world.names(reader), ['new'])
        yield from differs(level, world.names(writer), ['new'])
        with committed(writer, world.tenant) as writing:
            writing.session().query(User).delete()
        for app in writer, reader:
            app.close_orm_cache()


def memory_from_an_old_snapshot(world: World) -> Iterator[str]:
    """An object that was loaded before a commit is what a creator reads after it."""
    writer, reader = world.start()
    with reader.request_scope(world.tenant) as scope:
        loaded = scope.session().query(User).one()
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        yield from differs('in memory', loaded.name, 'old')
        found = reader.names
        yield from differs('read anew', found, ['new'])
    yield from differs('later', world.names(writer), ['new'])


def view_between_two_snapshots(world: World) -> Iterator[str]:
    """A change is committed between a transaction's snapshot and its view."""
    writer, reader = world.start('REPEATABLE READ')
    world.names(reader)

    def rename() -> None:
        with committed(writer, world.tenant) as scope:
            world.rename(scope)

    with reader.request_scope(world.tenant) as scope:
        with before(Step.VIEW, rename):
            scope.session().connection()
        direct = [row.name for row in scope.session().query(User.name)]
        yield from differs('cache and view', reader.names, direct)


def value_returned_before_the_view(world: World) -> Iterator[str]:
    """A value was returned, then changed, then the transaction takes its view."""
    writer, reader = world.start('REPEATABLE READ')
    world.names(reader)
    with reader.request_scope(world.tenant) as scope:
        returned = reader.names
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        try:
            direct = [row.name for row in scope.session().query(User.name)]
        except RetryableConflict:
            scope.reset()
            direct = [row.name for row in scope.session().query(User.name)]
            returned = reader.names
        yield from differs('cache and view', returned, direct)


def session_of_another_scope(world: World) -> Iterator[str]:
    """A creator reads through a transaction that began before its own scope."""
    writer, reader = world.start('REPEATABLE READ')
    with reader.request_scope(world.tenant) as outer:
        outer.session().query(User).count()
        with committed(writer, world.tenant) as writing:
            world.rename(writing)
        reader.lender = outer.session()
        with reader.request_scope(world.tenant):
            reader.session().connection()
            reader.borrowed  # what the other's view has, whatever that is
        reader.lender = None
    for app in reader, writer:
        yield from differs('later', value(app, world.tenant, lambda a: a.borrowed), ['new'])


def torn_page(world: World) -> Iterator[str]:
    """A commit changes two tables between a cached value of one and a computed one of the other,
    in either order."""
    writer, reader = world.start()
    reads = [lambda: list(reader.names), lambda: list(reader.titles)]
    for number, (first, second) in enumerate((reads, reads[::-1])):
        # only names are cached, and the commit comes before the creator of titles has read
        with committed(writer, world.tenant) as writing:
            world.rename(writing, f'before {number}')
            writing.session().query(Document).delete()
        world.names(reader)

        def change_both(number: int = number) -> None:
            with committed(writer, world.tenant) as writing:
                world.rename(writing, f'after {number}')
                writing.session().add(Document(title='after'))

        with reader.request_scope(world.tenant) as scope:
            scope.torn_pages.are_refused = True
            try:
                with before(Step.CREATOR, change_both):
                    page = [first(), second()]
            except RetryableConflict:
                scope.reset()
                page = [first(), second()]
        knows = [any(name.startswith('after') for name in shown) for shown in page]
        yield from differs('both know the commit', knows, [True, True])
