"""Writes by listeners of the application: of mappers, sessions and connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import event, text, update
from sqlalchemy.orm import Session

from ..entries import Entries
from ..schema import Note, Remark

entries = Entries()
write = entries.write

REMARK = text("UPDATE remarks SET text = 'changed' WHERE id = 1")


def while_flushing(session: Session, name: str, listener: Callable[..., None]) -> None:
    """Flush a changed note, while a listener of the mapper is there."""
    session.get_one(Note, 1).text = 'changed'
    event.listen(Note, name, listener)
    try:
        session.flush()
    finally:
        event.remove(Note, name, listener)


def core_statement(mapper: object, connection: Any, target: object) -> None:
    connection.execute(Remark.__table__.update().values(text='changed'))


def textual(mapper: object, connection: Any, target: object) -> None:
    connection.execute(REMARK)


def by_cursor(mapper: object, connection: Any, target: object) -> None:
    cursor = connection.connection.cursor()
    cursor.execute("UPDATE remarks SET text = 'changed' WHERE id = 1")
    cursor.close()


for _event in ('before_update', 'after_update'):
    for _listener in (core_statement, textual, by_cursor):
        write(
            f'mapper: {_event}, {_listener.__name__}',
            'orm: all of remarks',
            lambda s, name=_event, listener=_listener: while_flushing(s, name, listener),
        )


def on_session(session: Session, name: str, work: Callable[[Session], Any]) -> None:
    """Let a listener of the session work once, at its next event of this name."""
    event.listen(session, name, lambda *args: work(args[0]), once=True)


def bulk(session: Session) -> None:
    session.execute(update(Remark).values(text='changed'))


def textual_on_session(session: Session) -> None:
    session.execute(REMARK)


def add(session: Session) -> None:
    session.add(Remark(id=90, note_id=1, text='changed'))


for _event in ('before_flush', 'after_flush', 'after_flush_postexec'):
    for _work in (bulk, textual_on_session, add):
        if (_event, _work) == ('after_flush', add):
            continue  # SQLAlchemy has no flush for it
        write(
            f'session: {_event}, {_work.__name__}',
            'orm: all of remarks',
            lambda s, name=_event, work=_work: (
                on_session(s, name, work),
                setattr(s.get_one(Note, 1), 'text', 'changed'),
                s.flush(),
            ),
        )
for _work in (bulk, textual_on_session, add):
    write(
        f'session: before_commit, {_work.__name__}',
        '',
        lambda s, work=_work: (
            on_session(s, 'before_commit', work),
            setattr(s.get_one(Note, 1), 'text', 'changed'),
        ),
        late=True,
    )
    write(
        f'session: before_commit alone, {_work.__name__}',
        '',
        lambda s, work=_work: (s.connection(), on_session(s, 'before_commit', work)),
        late=True,
    )


def on_commit(session: Session, work: Callable[[Any], Any]) -> None:
    event.listen(session.connection(), 'commit', work, once=True)


write(
    'connection: commit, text', '', lambda s: on_commit(s, lambda c: c.execute(REMARK)), late=True
)
write(
    'connection: commit, driver',
    '',
    lambda s: on_commit(s, lambda c: c.exec_driver_sql("UPDATE remarks SET text = 'changed'")),
    late=True,
)
write(
    'connection: commit, cursor',
    '',
    lambda s: on_commit(
        s, lambda c: c.connection.cursor().execute("UPDATE remarks SET text = 'changed'")
    ),
    late=True,
)
write(
    'connection: commit, after a change',
    '',
    lambda s: (
        setattr(s.get_one(Note, 1), 'text', 'changed'),
        s.flush(),
        on_commit(s, lambda c: c.execute(REMARK)),
    ),
    late=True,
)
write(
    'connection: after_cursor_execute',
    'orm: all of remarks',
    lambda s: (
        event.listen(
            s.connection(),
            'after_cursor_execute',
            lambda c, *_: c.exec_driver_sql("UPDATE remarks SET text = 'changed'"),
            once=True,
        ),
        s.execute(text('SELECT 1')),
    ),
)
write(
    'engine: before_execute',
    'orm: all of remarks',
    lambda s: (
        event.listen(
            s.connection(),
            'before_execute',
            lambda c, *_: c.exec_driver_sql("UPDATE remarks SET text = 'changed'"),
            once=True,
        ),
        s.execute(update(Note).values(text='changed')),
    ),
)
