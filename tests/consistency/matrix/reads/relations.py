"""Reads by SQLAlchemy Core: relations that only the database knows, and names with a schema."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    MetaData,
    String,
    Table,
    column,
    select,
    table,
    union_all,
)
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries, rows
from ..schema import (
    COUNTRIES,
    ONE,
    SHARED,
    TWO,
    measures_north,
    notes_now,
    notes_view,
    open_notes,
    stocks_child,
    teams_view,
)
from .core import TEAM_NOTES, connected, notes, remarks

entries = Entries()
read = entries.read

#: The shared table, as another metadata has it: without a schema.
unplaced_countries = Table('countries', MetaData(), Column('name', String))


def translated(session: Session, schema: str | None, statement: object) -> list[object]:
    """Return the rows of a statement whose tables without schema are in another schema."""
    options = {'schema_translate_map': {None: schema}}
    return rows(session.execute(statement, execution_options=options))


# relations that only the database knows
read('view: plain', 'notes', lambda s: connected(s, select(notes_view)))
read('view: with a join', TEAM_NOTES, lambda s: connected(s, select(teams_view)))
read('view: that can be updated', 'notes', lambda s: connected(s, select(open_notes)))
read(
    'view: joined with a table',
    ['notes', 'remarks'],
    lambda s: connected(
        s,
        select(notes_view.c.text, remarks.c.text).join(
            remarks, remarks.c.note_id == notes_view.c.id
        ),
    ),
)
read(
    'view: materialised', 'notes', lambda s: connected(s, select(notes_now)), databases=POSTGRESQL
)
read(
    'partition: by its name',
    'measures',
    lambda s: connected(s, select(measures_north)),
    databases=POSTGRESQL,
)
read(
    'partition: joined with another',
    'measures',
    lambda s: connected(
        s,
        select(measures_north.c.value, table('measures_south', column('value')).c.value),
    ),
    databases=POSTGRESQL,
)
read(
    'child: by its name',
    'stocks',
    lambda s: connected(s, select(stocks_child)),
    databases=POSTGRESQL,
)

# names with a schema
read(
    'schema: own tenant',
    'notes',
    lambda s: connected(s, select(table('notes', column('text'), schema=ONE).c.text)),
    databases=POSTGRESQL,
)
read(
    'schema: own tenant, translated',
    'notes',
    lambda s: translated(s, ONE, select(notes)),
    databases=POSTGRESQL,
)
read(
    'schema: other tenant',
    ['notes'],
    lambda s: connected(s, select(table('notes', column('text'), schema=TWO).c.text)),
    databases=POSTGRESQL,
)
read(
    'schema: other tenant, translated',
    ['notes'],
    lambda s: translated(s, TWO, select(notes)),
    databases=POSTGRESQL,
)
read(
    'schema: both tenants',
    'notes',
    lambda s: connected(
        s,
        union_all(
            select(table('notes', column('text'), schema=ONE).c.text),
            select(table('notes', column('text'), schema=TWO).c.text),
        ),
    ),
    databases=POSTGRESQL,
)
read(
    'schema: shared, as a table clause',
    COUNTRIES,
    lambda s: connected(s, select(table('countries', column('name'), schema=SHARED).c.name)),
    databases=POSTGRESQL,
)
read(
    'schema: shared, translated',
    COUNTRIES,
    lambda s: translated(s, SHARED, select(unplaced_countries)),
    databases=POSTGRESQL,
)
