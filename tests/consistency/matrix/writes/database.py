"""Writes that PostgreSQL itself does: by functions, procedures, triggers and COMMIT."""

from __future__ import annotations

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries
from ..schema import Desk, Note, Room, Team, Ticket
from .texts import raw

entries = Entries()


def write(name: str, shows: str, run: object, **options: bool) -> None:
    entries.write(name, shows, run, databases=POSTGRESQL, **options)


write('function: sql', 'orm: all', lambda s: s.scalar(select(func.add_note('changed'))))
write('function: plpgsql', 'orm: all', lambda s: s.scalar(select(func.touch_notes('changed'))))
write(
    'function: dynamic',
    'orm: all',
    lambda s: s.scalar(select(func.touch_table('notes', 'changed'))),
)
write(
    'function: with EXCEPTION',
    'orm: all of remarks',
    lambda s: s.scalar(select(func.touch_guarded('changed'))),
)
write(
    'function: security definer',
    'orm: all',
    lambda s: s.scalar(select(func.touch_secretly('changed'))),
)
write(
    'function: table', 'orm: all', lambda s: s.execute(select(func.count_up().column_valued('n')))
)
write(
    'function: in a where',
    'orm: all',
    lambda s: s.execute(select(Team.id).where(func.count_up() > 0)).all(),
)
write(
    'function: in an update',
    'orm: all',
    lambda s: s.execute(
        update(Team).where(Team.id == 3).values(code=select(func.count_up()).scalar_subquery())
    ),
)
write(
    'function: in a text', 'orm: all', lambda s: s.execute(text("SELECT touch_notes('changed')"))
)
write('function: by a cursor', 'orm: all', lambda s: raw(s, "SELECT touch_notes('changed')"))
write(
    'function: of each row',
    'orm: all',
    lambda s: s.execute(
        text(
            "SELECT touch_table(c.relname, 'changed') FROM pg_class c "
            "WHERE c.oid IN ('notes'::regclass, 'remarks'::regclass)"
        )
    ),
)
write('procedure: CALL', 'orm: all', lambda s: s.execute(text("CALL rename_note('changed')")))
write(
    'default: that reads',
    'orm: sequence',
    lambda s: s.execute(Ticket.__table__.insert().values(id=90)),
)
write(
    'trigger: deferred, of the flush',
    '',
    lambda s: s.add(s.get_one(Desk, 1)) or setattr(s.get_one(Desk, 1), 'name', 'changed'),
    late=True,
)
write(
    'trigger: deferred, of a statement',
    '',
    lambda s: s.execute(text("UPDATE desks SET name = 'changed'")),
    late=True,
)
write(
    'trigger: deferred, made immediate',
    'of entries',
    lambda s: (
        s.execute(text('SET CONSTRAINTS ALL IMMEDIATE')),
        s.execute(text("UPDATE desks SET name = 'changed'")),
    ),
)
write('trigger: insert', 'of entries', lambda s: s.add(Room(id=90, name='changed')))
write('trigger: delete', 'of entries', lambda s: s.delete(s.get_one(Room, 1)))
write(
    'trigger: by a cascade',
    'of entries',
    lambda s: s.execute(text('DELETE FROM teams WHERE id = 2')),
)


def in_savepoint(session: Session) -> None:
    session.execute(text('SAVEPOINT own'))
    session.execute(text("UPDATE notes SET text = 'changed' WHERE id = 2"))
    session.execute(text('ROLLBACK TO SAVEPOINT own'))
    session.execute(text("UPDATE notes SET text = 'changed' WHERE id = 1"))


write('savepoint: by texts', 'orm: all', in_savepoint)
write(
    'savepoint: by texts, released',
    'orm: all',
    lambda s: [
        s.execute(text(sql))
        for sql in (
            'SAVEPOINT own',
            "UPDATE notes SET text = 'changed' WHERE id = 1",
            'RELEASE SAVEPOINT own',
        )
    ],
)
write('savepoint: failed statement', 'orm: all', lambda s: failed(s))


def failed(session: Session) -> None:
    session.execute(update(Note).values(text='changed'))
    try:
        with session.begin_nested():
            session.execute(text('INSERT INTO notes (id) VALUES (1)'))
    except Exception:
        pass  # the savepoint is rolled back
