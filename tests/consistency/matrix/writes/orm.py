"""Writes by the ORM: flushes of single objects, in bulk, and statements of entities."""

from __future__ import annotations

from typing import Any

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import flag_modified

from ..entries import BOTH, POSTGRESQL, Entries
from ..schema import (
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
    Node,
    Note,
    Permit,
    Remark,
    Room,
    Secret,
    State,
    Stock,
    Team,
    Ticket,
)

entries = Entries()
write = entries.write


def changed(session: Session, model: Any, key: Any = 1, **values: Any) -> Any:
    """Set attributes of one object, and return it."""
    obj = session.get_one(model, key)
    for name, value in values.items():
        setattr(obj, name, value)
    return obj


# objects
for _model, _attribute in (
    (Badge, 'name'),
    (Desk, 'name'),
    (Entry, 'text'),
    (Label, 'name'),
    (Node, 'name'),
    (Remark, 'text'),
    (Room, 'name'),
    (Stock, 'name'),
    (Country, 'name'),
    *((odd, 'text') for odd in ODD),
):
    _name = _model.__tablename__
    write(
        f'flush: update of {_name}',
        f'orm: all of .*{_name[:20]}|odd|self reference',
        lambda s, m=_model, a=_attribute: changed(s, m, **{a: 'changed'}),
        databases=POSTGRESQL if _model is Country else BOTH,
    )
write('flush: nothing', '', lambda s: s.scalars(select(Note)).all())
write('flush: same value', '', lambda s: changed(s, Note, n=1))
write('flush: insert', 'orm: all', lambda s: s.add(Note(id=90, text='changed')))
write(
    'flush: insert of several',
    'orm: all',
    lambda s: s.add_all([Note(id=90 + i, text='changed', team_id=1) for i in range(3)]),
)
write('flush: update', 'orm: all', lambda s: changed(s, Note, text='changed'))
write('flush: update of another row', 'orm: all', lambda s: changed(s, Note, 4, n=40))
write(
    'flush: update of a deferred column',
    'orm: deferred',
    lambda s: changed(s, Note, body='changed'),
)
write('flush: delete', 'orm: all', lambda s: s.delete(s.get_one(Note, 4)))
write(
    'flush: insert and delete',
    '',
    lambda s: (s.add(n := Note(id=90, text='changed')), s.flush(), s.delete(n)),
)
write('flush: SQL expression', 'orm: all', lambda s: changed(s, Note, n=Note.n + 10))
write('flush: merge of a new object', 'orm: all', lambda s: s.merge(Note(id=90, text='changed')))
write(
    'flush: merge of a known object',
    'orm: all',
    lambda s: s.merge(Note(id=1, text='changed', n=1, team_id=2)),
)
write(
    'flush: merge without load',
    '',
    lambda s: s.merge((s.expunge(n := s.get_one(Note, 1)), n)[1], load=False),
)
write(
    'flush: of a part',
    'orm: all',
    lambda s: (changed(s, Note, text='changed'), changed(s, Remark, text='changed'), s.flush()),
)
write('flush: primary key', 'core: one column|orm: columns', lambda s: changed(s, Note, 4, id=94))
write('flush: version', 'orm: special', lambda s: changed(s, Document, title='changed'))
write('flush: enum', 'orm: enum', lambda s: changed(s, Document, state=State.PUBLIC))
write('flush: json replaced', 'orm: json', lambda s: changed(s, Document, data={'a': 99}))


def in_place(session: Session) -> None:
    document = session.get_one(Document, 1)
    document.data['a'] = 98
    flag_modified(document, 'data')


write('flush: json in place', 'orm: json', in_place)
write('flush: array', 'orm: special', lambda s: changed(s, Document, words=['changed']))
write('flush: base of a generated column', 'orm: generated', lambda s: changed(s, Document, n=50))
write(
    'flush: identity',
    'orm: special',
    lambda s: s.add(Document(title='changed', state=State.DRAFT, data={'a': 3}, words=[])),
)
write('flush: sequence', 'orm: sequence', lambda s: s.add(Ticket(name='changed')))
write(
    'flush: partitioned table',
    'partitioned|measures',
    lambda s: changed(s, Measure, (1, 'north'), value=99),
)
write(
    'flush: permit of a row',
    'row level',
    lambda s: s.add(Permit(id=2, secret_id=2)),
    databases=POSTGRESQL,
)
write('flush: row with security', 'row level', lambda s: changed(s, Secret, text='changed'))
write('flush: table with a trigger', 'of entries', lambda s: changed(s, Room, name='changed'))
write(
    'flush: table with a rule',
    'of entries',
    lambda s: s.execute(update(Label).values(name='changed')),
    databases=POSTGRESQL,
)

# in bulk
write(
    'bulk: save objects',
    'orm: all',
    lambda s: s.bulk_save_objects([Note(id=90, text='changed', body='')]),
)
write(
    'bulk: save known objects',
    'orm: all',
    lambda s: s.bulk_save_objects([changed(s, Note, text='changed')]),
)
write(
    'bulk: insert mappings',
    'orm: all',
    lambda s: s.bulk_insert_mappings(Note.__mapper__, [{'id': 90, 'text': 'changed', 'n': 0}]),
)
write(
    'bulk: update mappings',
    'orm: all',
    lambda s: s.bulk_update_mappings(Note.__mapper__, [{'id': 1, 'text': 'changed'}]),
)
write(
    'bulk: insert with parameters',
    'orm: all',
    lambda s: s.execute(
        insert(Note), [{'id': 90, 'text': 'changed'}, {'id': 91, 'text': 'changed'}]
    ),
)
write(
    'bulk: update by keys',
    'orm: all',
    lambda s: s.execute(update(Note), [{'id': 1, 'text': 'changed'}]),
)
write(
    'bulk: returning',
    'orm: all',
    lambda s: s.scalars(insert(Note).returning(Note), [{'id': 90, 'text': 'changed'}]).all(),
)

# statements of entities
write(
    'statement: insert',
    'orm: all',
    lambda s: s.execute(insert(Note).values(id=90, text='changed')),
)
write(
    'statement: insert of an expression',
    'orm: all',
    lambda s: s.execute(
        insert(Note).values(id=select(func.max(Note.id) + 1).scalar_subquery(), text='changed')
    ),
)
write(
    'statement: insert from a select',
    'orm: all',
    lambda s: s.execute(
        insert(Note).from_select(['id', 'text'], select(Remark.id + 90, Remark.text))
    ),
)
write(
    'statement: update',
    'orm: all',
    lambda s: s.execute(update(Note).where(Note.id == 1).values(text='changed')),
)
for _mode in ('auto', 'fetch', 'evaluate', False):
    write(
        f'statement: update, synchronize {_mode}',
        'orm: all',
        lambda s, mode=_mode: (
            s.scalars(select(Note)).all(),
            s.execute(
                update(Note)
                .where(Note.id == 1)
                .values(text='changed')
                .execution_options(synchronize_session=mode)
            ),
        ),
    )
write(
    'statement: update with a subquery',
    'orm: all',
    lambda s: s.execute(update(Note).values(text=select(func.max(Team.code)).scalar_subquery())),
)
write(
    'statement: update from',
    'orm: all',
    lambda s: s.execute(
        update(Note).where(Note.team_id == Team.id, Team.id == 2).values(text=Team.code)
    ),
)
write(
    'statement: update of no row',
    '',
    lambda s: s.execute(update(Note).where(Note.id == 1000).values(text='changed')),
)
write('statement: delete', 'orm: all', lambda s: s.execute(delete(Note).where(Note.id == 4)))
write(
    'statement: delete using',
    'orm: all',
    lambda s: s.execute(delete(Remark).where(Remark.note_id == Note.id, Note.n == 1)),
    databases=POSTGRESQL,
)
write(
    'statement: returning',
    'orm: all',
    lambda s: s.scalars(update(Note).values(n=50).returning(Note)).all(),
)
write(
    'statement: cascade of the database',
    'orm: all of remarks',
    lambda s: s.execute(delete(Note).where(Note.id == 1)),
)
write(
    'statement: ON UPDATE CASCADE',
    'orm: all of labels',
    lambda s: s.execute(update(Team).where(Team.id == 2).values(code='changed')),
)
write(
    'statement: all ON DELETE actions',
    'orm: all of desks',
    lambda s: s.execute(delete(Team).where(Team.id == 2)),
)
write(
    'statement: shared table',
    'countries|shared',
    lambda s: s.execute(update(Country).values(name='changed')),
    databases=POSTGRESQL,
)
write(
    'statement: odd tables',
    'odd tables',
    lambda s: [s.execute(update(odd).values(text='changed')) for odd in (Comma, Apple)],
)
write(
    'query: update',
    'orm: all',
    lambda s: s.query(Note).filter_by(id=1).update({'text': 'changed'}),
)
write(
    'query: update, no synchronisation',
    'orm: all',
    lambda s: s.query(Note).update({Note.n: Note.n + 1}, synchronize_session=False),
)
write('query: delete', 'orm: all', lambda s: s.query(Note).filter(Note.id == 4).delete())


def upsert(session: Session) -> None:
    module: Any = postgresql if session.get_bind().dialect.name == 'postgresql' else sqlite
    session.execute(
        module.insert(Note)
        .values(id=1, text='changed')
        .on_conflict_do_update(index_elements=['id'], set_={'text': 'changed'})
    )


write('statement: upsert', 'orm: all', upsert)
write('savepoint: kept', 'orm: all', lambda s: in_savepoint(s, kept=True))
write('savepoint: rolled back', '', lambda s: in_savepoint(s, kept=False))
write(
    'savepoint: one kept, one not',
    'orm: all',
    lambda s: (in_savepoint(s, kept=True), in_savepoint(s, kept=False)),
)
write('savepoint: nested', 'orm: all', lambda s: nested(s))
write(
    'session: raw text after objects',
    'orm: all',
    lambda s: (
        changed(s, Remark, text='changed'),
        s.execute(text("UPDATE notes SET text = 'changed' WHERE id = 1")),
    ),
)


def in_savepoint(session: Session, kept: bool) -> None:
    with session.begin_nested() as savepoint:
        changed(session, Note, 1 if kept else 2, text='changed')
        session.flush()
        if not kept:
            savepoint.rollback()


def nested(session: Session) -> None:
    with session.begin_nested():
        changed(session, Note, text='changed')
        in_savepoint(session, kept=False)
