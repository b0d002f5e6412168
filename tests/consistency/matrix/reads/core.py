"""Reads by SQLAlchemy Core: statements of tables, on the session and on its connection."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    Integer,
    String,
    case,
    cast,
    column,
    distinct,
    extract,
    func,
    lateral,
    literal_column,
    select,
    table,
    text,
    true,
    union_all,
    values,
)
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries, rows
from ..schema import (
    COUNTRIES,
    ODD,
    Base,
    Comma,
    Country,
    Document,
    Note,
)

entries = Entries()
read = entries.read

T = Base.metadata.tables
notes, teams, remarks, nodes, rooms = (
    T[name] for name in ('notes', 'teams', 'remarks', 'nodes', 'rooms')
)
TEAM_NOTES = ['teams', 'notes']


def connected(session: Session, statement: object, parameters: object = None) -> list[object]:
    """Return the rows of a statement that the session's connection executes."""
    return rows(session.connection().execute(statement, parameters))


read('core: on the session', 'notes', lambda s: rows(s.execute(select(notes))))
read('core: on the connection', 'notes', lambda s: connected(s, select(notes)))
read('core: one column', 'notes', lambda s: connected(s, select(notes.c.text)))
read('core: alias', 'notes', lambda s: connected(s, select(notes.alias('other').c.text)))
read(
    'core: join',
    TEAM_NOTES,
    lambda s: connected(s, select(teams.c.code, notes.c.text).select_from(teams.join(notes))),
)
read(
    'core: implicit join',
    TEAM_NOTES,
    lambda s: connected(
        s, select(teams.c.code, notes.c.text).where(notes.c.team_id == teams.c.id)
    ),
)
read(
    'core: full join',
    TEAM_NOTES,
    lambda s: connected(
        s, select(teams.c.code, notes.c.text).select_from(teams.join(notes, full=True))
    ),
)
read('core: count', 'notes', lambda s: s.scalar(select(func.count()).select_from(notes)))
read(
    'core: group by, having',
    'notes',
    lambda s: connected(
        s,
        select(notes.c.team_id, func.sum(notes.c.n))
        .group_by(notes.c.team_id)
        .having(func.count() > 0),
    ),
)
read(
    'core: filtered aggregate',
    'notes',
    lambda s: connected(
        s, select(func.count(notes.c.id).filter(notes.c.n > 1), func.max(notes.c.text))
    ),
)
read('core: distinct', 'notes', lambda s: connected(s, select(distinct(notes.c.team_id))))
read(
    'core: window',
    'notes',
    lambda s: connected(s, select(notes.c.text, func.sum(notes.c.n).over(order_by=notes.c.id))),
)
read(
    'core: case',
    'notes',
    lambda s: connected(
        s, select(notes.c.id, case((notes.c.text.like('%first'), 'yes'), else_='no'))
    ),
)
read(
    'core: values joined',
    'notes',
    lambda s: connected(
        s,
        select(
            notes.c.text, (v := values(column('id', Integer), name='v').data([(1,), (2,)])).c.id
        ).join(v, v.c.id == notes.c.id),
    ),
)
read(
    'core: lateral',
    TEAM_NOTES,
    lambda s: connected(
        s,
        select(
            teams.c.code,
            (
                near := lateral(
                    select(notes.c.text).where(notes.c.team_id == teams.c.id).limit(5), 'near'
                )
            ).c.text,
        ).join(near, true()),
    ),
    databases=POSTGRESQL,
)
read(
    'core: table valued function',
    'documents',
    lambda s: connected(
        s,
        select(
            Document.__table__.c.id,
            func.unnest(Document.__table__.c.words, type_=String).column_valued('word'),
        ),
    ),
    databases=POSTGRESQL,
)
read(
    'core: json_each',
    'documents',
    lambda s: connected(
        s,
        select(
            Document.__table__.c.id,
            func.json_each(Document.__table__.c.words).table_valued('value').c.value,
        ),
    ),
    databases=frozenset({'sqlite'}),
)
read(
    'core: array aggregate',
    'notes',
    lambda s: (
        s.scalar(select(func.array_agg(notes.c.text, type_=ARRAY(String))))
        and rows(s.execute(select(notes.c.text)))
    ),
    databases=POSTGRESQL,
)
read(
    'core: grouping sets',
    'notes',
    lambda s: connected(
        s, select(notes.c.team_id, func.count()).group_by(func.rollup(notes.c.team_id))
    ),
    databases=POSTGRESQL,
)
read(
    'core: tablesample',
    'notes',
    lambda s: connected(s, select(notes.tablesample(func.bernoulli(100)).c.text)),
    databases=POSTGRESQL,
)
read(
    'core: for update',
    'notes',
    lambda s: connected(s, select(notes.c.text).with_for_update()),
    databases=POSTGRESQL,
    disturbs=True,
)
read(
    'core: for share',
    'notes',
    lambda s: connected(s, select(notes.c.text).with_for_update(read=True)),
    databases=POSTGRESQL,
    disturbs=True,
)
read(
    'core: only the parent',
    'stocks',
    lambda s: connected(
        s, select(T['stocks'].c.name).with_hint(T['stocks'], 'ONLY', 'postgresql')
    ),
)
read('core: all of a parent', 'stocks', lambda s: connected(s, select(T['stocks'])))
read('core: partitioned table', 'measures', lambda s: connected(s, select(T['measures'])))
read(
    'core: cast and extract',
    'notes',
    lambda s: connected(
        s, select(cast(notes.c.n, String), extract('year', func.date('2020-01-01')))
    ),
    databases=POSTGRESQL,
)
read(
    'core: literal column with a subquery',
    'notes',
    lambda s: connected(s, select(literal_column('(SELECT max(text) FROM notes)'))),
)
read(
    'core: text in a where',
    ['teams', 'notes'],
    lambda s: connected(s, select(teams.c.code).where(text('id IN (SELECT team_id FROM notes)'))),
)
read(
    'core: text as a from',
    'notes',
    lambda s: connected(s, select(column('text')).select_from(text('notes'))),
)
read(
    'core: text with columns, as a subquery',
    'notes',
    lambda s: connected(
        s, select(text('SELECT text FROM notes').columns(column('text')).subquery().c.text)
    ),
)
read(
    'core: table clause',
    'notes',
    lambda s: connected(s, select(table('notes', column('text')).c.text)),
)
read(
    'core: prefix',
    'notes',
    lambda s: connected(s, select(notes.c.text).prefix_with('/* a comment */')),
)
read(
    'core: mappings',
    'notes',
    lambda s: rows([(m['id'], m['text']) for m in s.execute(select(notes)).mappings()]),
)
read(
    'core: stream_results',
    'notes',
    lambda s: rows(
        s.connection().execute(select(notes), execution_options={'stream_results': True})
    ),
)
read(
    'core: yield_per',
    'notes',
    lambda s: rows(s.connection().execute(select(notes), execution_options={'yield_per': 1})),
)
read(
    'core: result read in parts',
    'notes',
    lambda s: (
        result := s.connection().execute(select(notes.c.text).order_by(notes.c.id)),
        result.scalar(),
    )[1],
)
read(
    'core: without compiled cache',
    'notes',
    lambda s: rows(
        s.connection().execute(select(notes), execution_options={'compiled_cache': None})
    ),
)
read(
    'core: of a shared table',
    COUNTRIES,
    lambda s: connected(s, select(Country.__table__)),
    databases=POSTGRESQL,
)
read(
    'core: of odd tables',
    list(ODD),
    lambda s: connected(s, union_all(*(select(odd.__table__.c.text) for odd in ODD))),
)
read(
    'core: a comma in a name, in a cte',
    [Comma],
    lambda s: connected(s, select(select(Comma.__table__).cte('c').c.text)),
)
read(
    'core: sample of entities and tables',
    ['notes', 'remarks'],
    lambda s: rows(
        s.execute(select(Note.text, remarks.c.text).join(remarks, remarks.c.note_id == Note.id))
    ),
)
