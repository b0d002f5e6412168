"""Writes by SQLAlchemy Core: statements of tables, on the session and on its connection."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Integer,
    String,
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
    text,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries
from ..schema import (
    ODD,
    ONE,
    SHARED,
    TWO,
    Base,
    Country,
    Document,
    measures_north,
    open_notes,
    ruled,
    stocks_child,
    teams_view,
)

entries = Entries()
write = entries.write

T = Base.metadata.tables
notes, teams, remarks, rooms = (T[name] for name in ('notes', 'teams', 'remarks', 'rooms'))
first = notes.c.id == 1


def run(session: Session, statement: Any, parameters: Any = None, **options: Any) -> Any:
    """Execute a statement on the session's connection."""
    return session.connection().execute(statement, parameters, execution_options=options)


write('core: insert', 'orm: all', lambda s: run(s, insert(notes).values(id=90, text='changed')))
write(
    'core: insert on the session',
    'orm: all',
    lambda s: s.execute(insert(notes).values(id=90, text='changed')),
)
write(
    'core: insert of several rows',
    'orm: all',
    lambda s: run(
        s, insert(notes).values([{'id': 90, 'text': 'changed'}, {'id': 91, 'text': 'changed'}])
    ),
)
write(
    'core: executemany',
    'orm: all',
    lambda s: run(
        s, insert(notes), [{'id': 90, 'text': 'changed'}, {'id': 91, 'text': 'changed'}]
    ),
)
write(
    'core: insert from a select',
    'orm: all',
    lambda s: run(
        s, insert(notes).from_select(['id', 'text'], select(remarks.c.id + 90, remarks.c.text))
    ),
)
write(
    'core: insert from a CTE',
    'orm: all',
    lambda s: run(
        s,
        insert(notes).from_select(
            ['id', 'text'], select((c := select(remarks).cte('c')).c.id + 90, c.c.text)
        ),
    ),
)
write(
    'core: insert with returning',
    'orm: all',
    lambda s: run(s, insert(notes).values(id=90, text='changed').returning(notes.c.id)).all(),
)
write(
    'core: update', 'orm: all', lambda s: run(s, update(notes).where(first).values(text='changed'))
)
write(
    'core: update of several',
    'orm: all',
    lambda s: run(
        s,
        update(notes).where(notes.c.id == text(':key')).values(text='changed'),
        [{'key': 1}, {'key': 2}],
    ),
)
write(
    'core: update of an alias',
    'orm: all',
    lambda s: run(s, update(notes.alias('other')).values(text='changed')),
)
write(
    'core: update with a subquery',
    'orm: all',
    lambda s: run(s, update(notes).values(text=select(func.max(teams.c.code)).scalar_subquery())),
)
write(
    'core: update from',
    'orm: all',
    lambda s: run(s, update(notes).where(notes.c.team_id == teams.c.id).values(text=teams.c.code)),
)
write(
    'core: update from values',
    'orm: all',
    lambda s: run(
        s,
        update(notes)
        .where(
            notes.c.id
            == (
                v := values(column('id', Integer), column('t', String), name='v').data(
                    [(1, 'changed')]
                )
            ).c.id
        )
        .values(text=v.c.t),
    ),
    databases=POSTGRESQL,
)
write(
    'core: update with returning',
    'orm: all',
    lambda s: run(s, update(notes).values(n=77).returning(notes.c.text)).all(),
)
write(
    'core: update of a text condition',
    'orm: all',
    lambda s: run(s, update(notes).where(text('id = 1')).values(text=literal_column("'changed'"))),
)
write('core: delete', 'orm: all', lambda s: run(s, delete(notes).where(notes.c.id == 4)))
write(
    'core: delete with a subquery',
    'orm: all of remarks',
    lambda s: run(s, delete(remarks).where(remarks.c.note_id.in_(select(notes.c.id)))),
)
write(
    'core: delete using',
    'orm: all of remarks',
    lambda s: run(s, delete(remarks).where(remarks.c.note_id == notes.c.id)),
    databases=POSTGRESQL,
)
write('core: delete of all', 'orm: all', lambda s: run(s, delete(notes)))
write(
    'core: cascade', 'orm: all of labels', lambda s: run(s, delete(teams).where(teams.c.id == 2))
)
write(
    'core: in a CTE',
    'orm: all of remarks',
    lambda s: run(
        s,
        select(delete(remarks).returning(remarks.c.id).cte('gone').c.id).add_columns(literal(1)),
    ).all(),
    databases=POSTGRESQL,
)
write(
    'core: add_cte',
    'orm: all',
    lambda s: run(
        s, select(literal(1)).add_cte(update(notes).values(text='changed').cte('unused'))
    ).all(),
    databases=POSTGRESQL,
)
write(
    'core: CTE that feeds an insert',
    'orm: all',
    lambda s: run(
        s,
        insert(notes).from_select(
            ['id', 'text', 'n', 'body'],
            select(
                (c := update(remarks).values(text='changed').returning(remarks).cte('c')).c.id
                + 90,
                c.c.text,
                literal(0),
                literal(''),
            ),
        ),
    ),
    databases=POSTGRESQL,
)


def dialect(session: Session) -> Any:
    """Return the module with the database's own insert()."""
    return postgresql if session.get_bind().dialect.name == 'postgresql' else sqlite


write(
    'core: upsert',
    'orm: all',
    lambda s: run(
        s,
        (i := dialect(s).insert(notes).values(id=1, text='changed')).on_conflict_do_update(
            index_elements=['id'], set_={'text': i.excluded.text}
        ),
    ),
)
write(
    'core: insert unless there',
    '',
    lambda s: run(
        s, dialect(s).insert(notes).values(id=1, text='changed').on_conflict_do_nothing()
    ),
)
write(
    'core: with a prefix',
    'orm: all',
    lambda s: run(s, update(notes).values(text='changed').prefix_with('/* comment */')),
)
write(
    'core: without compiled cache',
    'orm: all',
    lambda s: run(s, update(notes).values(text='changed'), compiled_cache=None),
)
write(
    'core: table clause',
    'orm: all',
    lambda s: run(s, update(table('notes', column('id'), column('text'))).values(text='changed')),
)
write(
    'core: shared table',
    'countries|shared',
    lambda s: run(s, update(Country.__table__).values(name='changed')),
    databases=POSTGRESQL,
)
write(
    'core: odd tables',
    'odd tables',
    lambda s: [run(s, update(odd.__table__).values(text='changed')) for odd in ODD],
)
write(
    'core: partitioned table', 'measures', lambda s: run(s, update(T['measures']).values(value=5))
)
write(
    'core: row moved to another partition',
    'measures',
    lambda s: run(
        s,
        update(T['measures']).where(T['measures'].c.id == 1).values(region='south'),
    ),
)
write(
    'core: partition by its name',
    'measures',
    lambda s: run(s, update(measures_north).values(value=5)),
    databases=POSTGRESQL,
)
write(
    'core: child by its name',
    'stocks',
    lambda s: run(s, update(stocks_child).values(name='changed')),
    databases=POSTGRESQL,
)
write(
    'core: parent with child',
    'stocks',
    lambda s: run(s, update(T['stocks']).values(name='changed')),
)
write(
    'core: json column',
    'documents|json',
    lambda s: run(s, update(Document.__table__).values(data={'a': 55})),
)
write(
    'core: table with a trigger',
    'of entries',
    lambda s: run(s, update(rooms).values(name='changed')),
)
write(
    'core: view that can be updated',
    'orm: all',
    lambda s: run(s, update(open_notes).where(open_notes.c.id == 1).values(text='changed')),
)
write(
    'core: view with a trigger',
    'core: full',
    lambda s: run(s, update(teams_view).where(teams_view.c.notes == 0).values(code='x')),
    databases=POSTGRESQL,
)
write(
    'core: view with a rule',
    'orm: all of remarks',
    lambda s: run(s, insert(ruled).values(id=90, text='changed')),
    databases=POSTGRESQL,
)

# names with a schema
write(
    'schema: own tenant',
    'orm: all',
    lambda s: run(s, update(table('notes', column('text'), schema=ONE)).values(text='changed')),
    databases=POSTGRESQL,
)
write(
    'schema: own tenant, translated',
    'orm: all',
    lambda s: run(s, update(notes).values(text='changed'), schema_translate_map={None: ONE}),
    databases=POSTGRESQL,
)
write(
    'schema: other tenant',
    'other tenant',
    lambda s: run(s, update(table('notes', column('text'), schema=TWO)).values(text='changed')),
    databases=POSTGRESQL,
)
write(
    'schema: other tenant, translated',
    'other tenant',
    lambda s: run(s, update(notes).values(text='changed'), schema_translate_map={None: TWO}),
    databases=POSTGRESQL,
)
write(
    'schema: other tenant, connection translated',
    'other tenant',
    lambda s: s.execute(
        update(notes).values(text='changed'),
        execution_options={'schema_translate_map': {None: TWO}},
    ),
    databases=POSTGRESQL,
)
write(
    'schema: both tenants',
    'both tenants',
    lambda s: [
        run(s, update(table('notes', column('text'), schema=name)).values(text='changed'))
        for name in (ONE, TWO)
    ],
    databases=POSTGRESQL,
)
write(
    'schema: shared, as a table clause',
    'countries|shared',
    lambda s: run(
        s, update(table('countries', column('name'), schema=SHARED)).values(name='changed')
    ),
    databases=POSTGRESQL,
)
write(
    'schema: cascade in another tenant',
    'other tenant',
    lambda s: run(s, delete(table('teams', column('id'), schema=TWO)).where(text('id = 2'))),
    databases=POSTGRESQL,
)
