"""A row has moved to other values' rows since a writer loaded its object.

The UPDATE or DELETE of an object names its row by the primary key. So it changes the row also if
the object in memory has an older foreign key, and with it what depends on the present one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import event, select, text
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.loading import merge_frozen_result

from onegov_ormcache.steps import Step
from tests.consistency.interleaving import before
from tests.support.applications import change, committed, value
from tests.support.models import Document, User
from tests.support.wires import Wire

from .world import App, World, differs

#: The document that moves from the first user to the second.
ID = 17


def _start(world: World, level: str = 'READ COMMITTED', **settings: Any) -> tuple[App, App]:
    writer, reader = world.start(level, **settings)
    change(writer, world.tenant, User(id=100, name='first'), User(id=200, name='second'))
    change(writer, world.tenant, Document(id=ID, kind='document', title='old', owner_id=100))
    _owned(world, reader)
    return writer, reader


def _owned(world: World, app: App) -> list[Any]:
    """Return the titles that each of the two users owns."""
    return [value(app, world.tenant, lambda app, id=id: app.owned(id)) for id in (100, 200)]


def _move(world: World, app: App) -> None:
    """Another transaction gives the document to the second user, and others cache that."""
    with committed(app, world.tenant) as scope:
        scope.session().get_one(Document, ID).owner_id = 200
    _owned(world, app)


def _compare(world: World, *apps: App, titles: tuple[str, ...] = ('new',)) -> Iterator[str]:
    for app in apps:
        yield from differs('after the change', _owned(world, app), [[], list(titles)])


def moved_before_the_flush(world: World) -> Iterator[str]:
    """A document is loaded, then moved by another transaction, then changed or deleted; under
    stricter levels, the database refuses that."""
    for level in 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE':
        for delete in False, True:
            writer, reader = _start(world, level)
            titles: tuple[str, ...] = () if delete else ('new',)
            with writer.request_scope(world.tenant) as scope:
                session = scope.session()
                document = session.get_one(Document, ID)
                _move(world, reader)
                if delete:
                    session.delete(document)
                document.title = 'new'
                try:
                    session.commit()
                except OperationalError:
                    session.rollback()
                    titles = ('old',)
            yield from differs('refused', titles == ('old',), level != 'READ COMMITTED')
            yield from _compare(world, writer, reader, titles=titles)
            _leave(world, writer, reader)


def moved_twice(world: World) -> Iterator[str]:
    """A document is loaded, moved away, and moved back."""
    writer, reader = _start(world)
    with writer.request_scope(world.tenant) as scope:
        document = scope.session().get_one(Document, ID)
        _move(world, reader)
        with committed(reader, world.tenant) as moving:
            moving.session().get_one(Document, ID).owner_id = 100
        _owned(world, reader)
        document.title = 'new'
        scope.session().commit()
    for app in writer, reader:
        yield from differs('after the change', _owned(world, app), [['new'], []])


def moved_before_its_new_versions(world: World) -> Iterator[str]:
    """The move is durable, and its tags are still in doubt, when the other change is committed."""
    writer, reader = _start(world)

    def change_and_read() -> None:
        document.title = 'new'
        session.commit()
        _owned(world, writer)

    with writer.request_scope(world.tenant) as scope:
        session = scope.session()
        document = session.get_one(Document, ID)
        with before(Step.PUBLISH, change_and_read), committed(reader, world.tenant) as moving:
            moving.session().get_one(Document, ID).owner_id = 200
    yield from _compare(world, writer, reader)


def moved_between_two_flushes(world: World) -> Iterator[str]:
    """The doubt of the first flush is answered when a second document moves; a listener then
    changes that one, too, before the commit."""
    writer, reader = _start(world)
    moved: list[Document] = []
    change(writer, world.tenant, Document(id=ID + 1, kind='document', title='a', owner_id=100))

    def move(session: Session, context: object) -> None:
        if not moved:
            moved.append(documents[0])
            _move(world, reader)
            moved[0].title = 'new'

    with writer.request_scope(world.tenant) as scope:
        session = scope.session()
        documents = [session.get_one(Document, id) for id in (ID, ID + 1)]
        event.listen(session, 'after_flush_postexec', move)
        documents[1].title = 'b'
        session.commit()
    for app in writer, reader:
        yield from differs('after the change', _owned(world, app), [['b'], ['new']])


def moved_by_a_statement(world: World) -> Iterator[str]:
    """The document is moved by a statement that does not tell where it was before."""
    writer, reader = _start(world)
    with writer.request_scope(world.tenant) as scope:
        document = scope.session().get_one(Document, ID)
        with committed(reader, world.tenant) as moving:
            moving.session().execute(text(f'UPDATE documents SET owner_id = 200 WHERE id = {ID}'))
        _owned(world, reader)
        document.title = 'new'
        scope.session().commit()
    yield from _compare(world, writer, reader)


# objects that the transaction has not loaded itself


def _added(session: Session, stale: Document) -> Document:
    session.add(stale)
    return stale


def _unpickled(session: Session, stale: Document) -> Document:
    copy: Document = pickle.loads(pickle.dumps(stale))
    session.add(copy)
    return copy


def _made(session: Session, stale: Document) -> Document:
    made = Document(id=ID, kind='document')
    make_transient_to_detached(made)
    set_committed_value(made, 'owner_id', stale.owner_id)
    session.add(made)
    return made


def _merged(session: Session, stale: Document) -> Document:
    return session.merge(stale, load=False)


def _merged_over(session: Session, stale: Document) -> Document:
    loaded = session.get_one(Document, ID)
    session.merge(stale, load=False)
    return loaded


def _thawed(session: Session, stale: Document) -> Document:
    loaded = session.get_one(Document, ID)
    result = IteratorResult(SimpleResultMetaData(['Document']), iter([(stale,)]))
    merge_frozen_result(session, select(Document), result.freeze(), load=False)().all()
    return loaded


WAYS: tuple[Callable[[Session, Document], Document], ...] = (
    _added, _unpickled, _made, _merged, _merged_over, _thawed,
)  # fmt: skip


def brought_from_elsewhere(world: World) -> Iterator[str]:
    """A document that was loaded before the transaction began comes into its session, is changed
    there, and has moved in between."""
    for bring in WAYS:
        writer, reader = _start(world)
        with writer.request_scope(world.tenant) as scope:
            stale = scope.session().get_one(Document, ID)
            scope.session().expunge(stale)
        _move(world, reader)
        with committed(writer, world.tenant) as scope:
            bring(scope.session(), stale).title = 'new'
        for found in _compare(world, writer, reader):
            yield f'{bring.__name__}: {found}'
        _leave(world, writer, reader)


def kept_over_a_commit(world: World) -> Iterator[str]:
    """The document moves after the commit of a session that keeps what it has loaded, which
    changes it in its next transaction."""
    writer, reader = _start(world)
    with writer.request_scope(world.tenant) as scope:
        session = scope.session()
        session.expire_on_commit = False
        document = session.get_one(Document, ID)
        session.commit()
        _move(world, reader)
        document.title = 'new'
        session.commit()
    yield from _compare(world, writer, reader)


def moved_in_an_outage(world: World) -> Iterator[str]:
    """The writer can't reach the tag store when it commits, or could not when it began."""
    for is_cut_first in False, True:
        writer, reader = _start(world)
        with Wire(world.redis.url) as wire:
            lonely = world.applications.start(App, redis_url=wire.url, redis_timeout=0.5)
            _owned(world, lonely)
            if is_cut_first:
                wire.cut()
            with lonely.request_scope(world.tenant) as scope:
                document = scope.session().get_one(Document, ID)
                _move(world, reader)
                wire.mend() if is_cut_first else wire.cut()
                document.title = 'new'
                scope.session().commit()
            wire.mend()
            _owned(world, lonely)  # it delivers what it has left in its outbox
            yield from _compare(world, lonely, writer, reader)
            lonely.close_orm_cache()
        _leave(world, writer, reader)


def _leave(world: World, *apps: App) -> None:
    with committed(apps[0], world.tenant) as scope:
        scope.session().execute(text('DELETE FROM documents'))
        scope.session().execute(text('DELETE FROM users'))
    for app in apps:
        app.close_orm_cache()
