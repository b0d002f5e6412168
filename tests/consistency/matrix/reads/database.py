"""Reads in PostgreSQL itself: by its functions, and by statements that also write."""

from __future__ import annotations

from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries, rows
from ..schema import Note, Team, Ticket
from .texts import raw, texted

entries = Entries()


def read(name: str, policy: str | list[str], run: object, disturbs: bool = False) -> None:
    entries.read(name, policy, run, databases=POSTGRESQL, disturbs=disturbs)


read('function: sql', 'notes', lambda s: s.scalar(select(func.count_notes())))
read('function: plpgsql', 'notes', lambda s: int(s.scalar(select(func.sum_notes()))))
read('function: dynamic', 'notes', lambda s: s.scalar(select(func.dynamic_notes('notes'))))
read('function: with EXCEPTION', 'notes', lambda s: s.scalar(select(func.guarded_notes())))
read('function: security definer', 'notes', lambda s: s.scalar(select(func.secret_notes())))
read('function: wrongly immutable', 'notes', lambda s: int(s.scalar(select(func.claimed_notes()))))
read(
    'function: table',
    'notes',
    lambda s: sorted(s.scalars(select(func.texts_of_notes().column_valued('text')))),
)
read(
    'function: in a where',
    ['notes', 'teams'],
    lambda s: sorted(s.scalars(select(Team.code).where(func.count_notes() > 5, Team.id < 3))),
)
read(
    'function: aggregate',
    ['notes', 'teams'],
    lambda s: s.scalar(
        select(func.concat_all(text('x.code'))).select_from(
            text('(SELECT code FROM teams ORDER BY id) AS x')
        )
    ),
)
read('function: in a text', 'notes', lambda s: texted(s, 'SELECT count_notes()'))
read('function: in a text FROM', 'notes', lambda s: texted(s, 'SELECT * FROM texts_of_notes()'))
read('function: by a cursor', 'notes', lambda s: raw(s, 'SELECT count_notes()'))
read(
    'function: of a row',
    'notes',
    lambda s: texted(
        s, "SELECT dynamic_notes(c.relname) FROM pg_class c WHERE c.oid = 'notes'::regclass"
    ),
)
read(
    'function: of an attribute',
    'notes',
    lambda s: texted(s, 'SELECT row_to_json(notes)::text FROM notes'),
)
read(
    'function: that changes nothing read',
    'remarks',
    lambda s: s.scalar(select(func.count()).select_from(text('remarks'))),
)
read('function: EXPLAIN', 'notes', lambda s: bool(texted(s, 'EXPLAIN SELECT text FROM notes')))
read(
    'function: EXPLAIN ANALYZE',
    'notes',
    lambda s: bool(texted(s, 'EXPLAIN (ANALYZE, TIMING OFF) SELECT text FROM notes')),
)
read(
    'default: that reads',
    ['tickets', 'notes'],
    lambda s: s.scalar(insert(Ticket).values(id=70).returning(Ticket.name)),
    disturbs=True,
)


def returned(session: Session) -> list[object]:
    """Return the rows of an UPDATE that changes nothing."""
    return rows(session.execute(update(Note).values(n=Note.n).returning(Note.id, Note.text)))


read('returning: ORM', 'notes', returned, disturbs=True)
read(
    'returning: text',
    'notes',
    lambda s: texted(s, 'UPDATE notes SET n = n RETURNING id, text'),
    disturbs=True,
)
read(
    'returning: in a CTE',
    'notes',
    lambda s: texted(
        s, 'WITH done AS (UPDATE notes SET n = n RETURNING id, text) SELECT * FROM done'
    ),
    disturbs=True,
)
read(
    'returning: of a delete',
    'remarks',
    lambda s: texted(s, 'DELETE FROM remarks WHERE id = 1 RETURNING text'),
    disturbs=True,
)
read(
    'returning: of an insert from a select',
    ['notes', 'teams'],
    lambda s: texted(s, 'INSERT INTO entries (text) SELECT text FROM notes RETURNING text'),
    disturbs=True,
)
read(
    'lock: FOR UPDATE',
    'notes',
    lambda s: texted(s, 'SELECT text FROM notes FOR UPDATE'),
    disturbs=True,
)
read(
    'lock: LOCK TABLE',
    'notes',
    lambda s: (
        s.execute(text('LOCK TABLE notes IN ACCESS SHARE MODE')),
        texted(s, 'SELECT text FROM notes'),
    )[1],
    disturbs=True,
)
read(
    'function: that writes and returns',
    'notes',
    lambda s: s.scalar(select(func.count_up())),
    disturbs=True,
)
read(
    'large object',
    'notes',
    lambda s: (
        s.execute(text("SELECT lo_from_bytea(0, 'x')")),
        texted(s, 'SELECT text FROM notes'),
    )[1],
    disturbs=True,
)
