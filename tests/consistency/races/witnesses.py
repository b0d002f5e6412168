"""A writer changes a table, or ends its transaction, in a way that its statements do not show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import text

from onegov_ormcache.errors import TextualControlError
from tests.support.applications import change, committed
from tests.support.models import Document, User

from .world import World, differs, driver_connection

RENAMED = "UPDATE users SET name = 'new'"

TRIGGER = f"""
CREATE FUNCTION renamed() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN {RENAMED}; RETURN NULL; END $$;
CREATE TRIGGER renamed AFTER INSERT ON documents EXECUTE FUNCTION renamed()
"""


def _start(world: World) -> tuple[Any, Any]:
    writer, reader = world.start()
    world.names(reader)
    return writer, reader


def _compare(world: World, *apps: Any) -> Iterator[str]:
    for app in apps:
        yield from differs('after the commit', world.names(app), ['new'])


def compiled_statement(world: World) -> Iterator[str]:
    """A writer changes the table by a statement that SQLAlchemy compiles."""
    writer, reader = _start(world)
    with committed(writer, world.tenant) as scope:
        scope.session().connection().execute(User.__table__.update().values(name='new'))
    yield from _compare(world, writer, reader)


def code_of_the_database(world: World) -> Iterator[str]:
    """A writer executes a text whose words do not show what it changes."""
    writer, reader = _start(world)
    with committed(writer, world.tenant) as scope:
        scope.session().execute(text(f'DO $$ BEGIN {RENAMED}; END $$'))
    yield from _compare(world, writer, reader)


def cursor_of_the_driver(world: World) -> Iterator[str]:
    """A writer uses a cursor of the driver, which SQLAlchemy does not see."""
    writer, reader = _start(world)
    with committed(writer, world.tenant) as scope:
        driver_connection(scope).cursor().execute(RENAMED)
    yield from _compare(world, writer, reader)


def trigger_of_the_database(world: World) -> Iterator[str]:
    """A writer inserts an object, and a trigger changes another table."""
    writer, reader = _start(world)
    with committed(writer, world.tenant) as scope:
        scope.session().connection().exec_driver_sql(TRIGGER)
    world.names(reader)
    change(writer, world.tenant, Document(kind='document', title='a'))
    yield from _compare(world, writer, reader)


def trigger_that_is_new(world: World) -> Iterator[str]:
    """The trigger is created in another process, after the writer's transaction has begun."""
    writer, reader = _start(world)
    change(writer, world.tenant, Document(kind='document', title='known'))
    with writer.request_scope(world.tenant) as scope:
        scope.session().connection()
        with committed(reader, world.tenant) as other:
            other.session().connection().exec_driver_sql(TRIGGER)
        world.names(reader)
        scope.session().add(Document(kind='document', title='a'))
        scope.session().commit()
    yield from _compare(world, writer, reader)


def table_of_another_tenant(world: World) -> Iterator[str]:
    """A writer changes the table of another tenant than its own, by its qualified name."""
    writer, reader = _start(world)
    with committed(writer, f'{world.tenant}2') as scope:
        scope.session().execute(text(f"UPDATE {world.tenant}.users SET name = 'new'"))
    yield from _compare(world, writer, reader)


def text_that_commits(world: World) -> Iterator[str]:
    """The text of a statement commits the transaction."""
    writer, reader = _start(world)
    try:
        with committed(writer, world.tenant) as scope:
            scope.session().connection().exec_driver_sql(f'{RENAMED}; COMMIT')
    except TextualControlError:
        pass
    yield from _compare(world, writer, reader)


def text_that_commits_and_begins(world: World) -> Iterator[str]:
    """The text of a statement commits the transaction and begins another one."""
    writer, reader = _start(world)
    try:
        with committed(writer, world.tenant) as scope:
            scope.session().connection().exec_driver_sql(f'{RENAMED}; COMMIT; BEGIN')
    except TextualControlError:
        pass
    yield from _compare(world, writer, reader)
