"""Reads by the ORM: each way to load one entity, and statements of entities."""

from __future__ import annotations

from sqlalchemy import bindparam, desc, exists, func, literal, select, text, true, union_all
from sqlalchemy.orm import (
    Bundle,
    aliased,
    load_only,
    undefer,
)

from ..entries import BOTH, POSTGRESQL, Entries, rows
from ..schema import (
    COUNTRIES,
    ODD,
    Apple,
    Badge,
    Comma,
    Country,
    Desk,
    Document,
    Entry,
    Label,
    Measure,
    Note,
    Remark,
    Room,
    Secret,
    Stock,
    Team,
    Ticket,
    membership,
)

entries = Entries()
read = entries.read

TEAM_NOTES = ['teams', 'notes']


def texts(notes: list[Note]) -> list[object]:
    """Return what is loaded of notes."""
    return rows([(note.id, note.team_id, note.text, note.n) for note in notes])


# one table
for _model in (Badge, Desk, Label, Room, Remark, Stock, Measure, Country, Entry, *ODD):
    _name = COUNTRIES if _model is Country else _model.__tablename__
    read(
        f'orm: all of {_name}',
        _model if _model in ODD else _name,
        lambda s, model=_model: rows(
            [
                [getattr(o, a.key) for a in model.__mapper__.column_attrs]
                for o in s.scalars(select(model))
            ]
        ),
        databases=POSTGRESQL if _model is Country else BOTH,
    )
read('orm: all', 'notes', lambda s: texts(s.scalars(select(Note)).all()))
read('orm: get', 'notes', lambda s: (n := s.get(Note, 1)) and texts([n]))
read('orm: get of what is missing', 'notes', lambda s: s.get(Note, 90) is None)
read('orm: where', 'notes', lambda s: texts(s.scalars(select(Note).where(Note.n > 1)).all()))
read(
    'orm: where nothing matches',
    'notes',
    lambda s: texts(s.scalars(select(Note).where(Note.text.like('%changed%'))).all()),
)
read(
    'orm: limit',
    'notes',
    lambda s: texts(s.scalars(select(Note).order_by(desc(Note.id)).limit(1)).all()),
)
read('orm: columns', 'notes', lambda s: rows(s.execute(select(Note.id, Note.text))))
read('orm: one column', 'notes', lambda s: sorted(s.scalars(select(Note.text))))
read(
    'orm: bundle',
    'notes',
    lambda s: rows([row[0] for row in s.execute(select(Bundle('pair', Note.id, Note.text)))]),
)
read(
    'orm: load_only',
    'notes',
    lambda s: sorted(note.text for note in s.scalars(select(Note).options(load_only(Note.text)))),
)
read(
    'orm: deferred column',
    'notes',
    lambda s: sorted(note.body for note in s.scalars(select(Note))),
)
read(
    'orm: undefer',
    'notes',
    lambda s: sorted(note.body for note in s.scalars(select(Note).options(undefer(Note.body)))),
)
read(
    'orm: column_property',
    ['notes', 'remarks'],
    lambda s: rows([(note.id, note.number_of_remarks) for note in s.scalars(select(Note))]),
)
read('orm: hybrid', 'notes', lambda s: sorted(s.scalars(select(Note.shout))))
read(
    'orm: refresh',
    'notes',
    lambda s: [s.refresh(note) or note.text for note in s.scalars(select(Note).order_by(Note.id))],
)
read(
    'orm: populate_existing',
    'notes',
    lambda s: texts(s.scalars(select(Note).execution_options(populate_existing=True)).all()),
)
read(
    'orm: expired attribute',
    'notes',
    lambda s: [s.expire(note) or note.text for note in s.scalars(select(Note).order_by(Note.id))],
)
read(
    'orm: yield_per',
    'notes',
    lambda s: texts(list(s.scalars(select(Note).execution_options(yield_per=2)))),
)
read(
    'orm: partitions',
    'notes',
    lambda s: texts(
        [n for part in s.scalars(select(Note).order_by(Note.id)).partitions(2) for n in part]
    ),
)
read(
    'orm: special types',
    'documents',
    lambda s: rows(
        [
            (d.id, d.title, d.state.name, d.data, d.words, d.n, d.doubled, d.version)
            for d in s.scalars(select(Document))
        ]
    ),
)
read(
    'orm: enum',
    'documents',
    lambda s: sorted(state.name for state in s.scalars(select(Document.state))),
)
read(
    'orm: json path',
    'documents',
    lambda s: rows(s.execute(select(Document.id, Document.data['a'].as_integer()))),
)
read('orm: generated column', 'documents', lambda s: sorted(s.scalars(select(Document.doubled))))
read('orm: sequence numbers', 'tickets', lambda s: rows(s.execute(select(Ticket.id, Ticket.name))))
read(
    'orm: row level security',
    ['secrets', 'permits'],
    lambda s: sorted(s.scalars(select(Secret.text))),
)

# the legacy query
read('query: all', 'notes', lambda s: texts(s.query(Note).all()))
read('query: count', 'notes', lambda s: s.query(Note).count())
read('query: filter_by', 'notes', lambda s: texts(s.query(Note).filter_by(team_id=2).all()))
read(
    'query: join',
    ['notes', 'teams'],
    lambda s: rows(s.query(Team.code, Note.text).join(Note.team).all()),
)
read(
    'query: exists',
    ['notes'],
    lambda s: s.query(s.query(Note).filter(Note.text.like('%first')).exists()).scalar(),
)
read(
    'query: from_statement',
    'notes',
    lambda s: texts(s.query(Note).from_statement(text('SELECT * FROM notes')).all()),
)
read('query: slice', 'notes', lambda s: texts(s.query(Note).order_by(Note.id)[1:3]))
read('query: scalar', 'notes', lambda s: s.query(func.max(Note.text)).scalar())
read(
    'query: union',
    'notes',
    lambda s: texts(
        s.query(Note).filter(Note.id == 1).union(s.query(Note).filter(Note.id == 2)).all()
    ),
)
read('query: with_entities', 'notes', lambda s: rows(s.query(Note).with_entities(Note.text)))

# statements of entities
read(
    'orm: join',
    TEAM_NOTES,
    lambda s: rows(s.execute(select(Team.code, Note.text).join(Team.notes))),
)
read(
    'orm: outer join',
    TEAM_NOTES,
    lambda s: rows(s.execute(select(Team.code, Note.text).outerjoin(Team.notes))),
)
read(
    'orm: join by condition',
    TEAM_NOTES,
    lambda s: rows(s.execute(select(Team.code, Note.text).join(Note, Note.team_id == Team.id))),
)
read(
    'orm: cartesian product',
    ['rooms', 'desks'],
    lambda s: rows(s.execute(select(Room.name, Desk.name).join(Desk, true()))),
)
read('orm: alias', 'notes', lambda s: rows(s.execute(select(aliased(Note).text))))
read(
    'orm: alias of a subquery',
    'notes',
    lambda s: texts(
        s.scalars(select(aliased(Note, select(Note).where(Note.n > 1).subquery()))).all()
    ),
)
read(
    'orm: cte',
    'notes',
    lambda s: texts(
        s.scalars(select(aliased(Note, select(Note).where(Note.n > 1).cte('some')))).all()
    ),
)
read(
    'orm: union',
    'notes',
    lambda s: texts(
        s.scalars(
            select(Note).from_statement(
                union_all(select(Note).where(Note.id == 1), select(Note).where(Note.id == 2))
            )
        ).all()
    ),
)
read(
    'orm: from_statement of a text',
    'notes',
    lambda s: texts(
        s.scalars(
            select(Note).from_statement(text('SELECT * FROM notes WHERE n > :n')), {'n': 1}
        ).all()
    ),
)
read(
    'orm: from_statement of text columns',
    'notes',
    lambda s: texts(
        s.scalars(
            select(Note).from_statement(
                text('SELECT id, team_id, text, n FROM notes').columns(
                    Note.id, Note.team_id, Note.text, Note.n
                )
            )
        ).all()
    ),
)
read(
    'orm: scalar subquery',
    TEAM_NOTES,
    lambda s: rows(
        s.execute(
            select(
                Team.code,
                select(func.count(Note.id)).where(Note.team_id == Team.id).scalar_subquery(),
            )
        )
    ),
)
read(
    'orm: exists',
    TEAM_NOTES,
    lambda s: sorted(s.scalars(select(Team.code).where(exists().where(Note.team_id == Team.id)))),
)
read(
    'orm: in',
    TEAM_NOTES,
    lambda s: sorted(s.scalars(select(Team.code).where(Team.id.in_(select(Note.team_id))))),
)
read(
    'orm: in of parameters',
    'notes',
    lambda s: sorted(
        s.scalars(
            select(Note.text).where(Note.id.in_(bindparam('ids', expanding=True))), {'ids': [1, 2]}
        )
    ),
)
read(
    'orm: only constants of a table',
    'notes',
    lambda s: rows(s.execute(select(literal(1)).select_from(Note))),
)
read(
    'orm: count of a secondary table',
    'membership',
    lambda s: s.scalar(select(func.count()).select_from(membership)),
)
read(
    'orm: get_one of a shared table',
    COUNTRIES,
    lambda s: s.get_one(Country, 1).name,
    databases=POSTGRESQL,
)
read(
    'orm: join with a shared table',
    ['notes', COUNTRIES],
    lambda s: rows(
        s.execute(select(Note.text, Country.name).join(Country, Country.id == Note.id))
    ),
    databases=POSTGRESQL,
)
read(
    'orm: rows of odd tables',
    [Comma, Apple],
    lambda s: rows(s.execute(select(Comma.text, Apple.text).join(Apple, true()))),
)
