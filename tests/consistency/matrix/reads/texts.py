"""Reads by texts, by the driver, and by cursors."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, String, column, select, text
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries, rows
from ..schema import (
    COUNTRIES,
    LONG,
    ODD,
    ONE,
    SHARED,
    TWO,
    Apple,
    Comma,
    Lead,
    Long,
    Note,
    Percent,
)

entries = Entries()
read = entries.read

TEAM_NOTES = ['teams', 'notes']


def texted(session: Session, sql: str, **parameters: Any) -> list[Any]:
    """Return the rows of a text."""
    return rows(session.execute(text(sql), parameters))


def cursor_of(session: Session) -> Any:
    """Return a cursor of the driver, on the session's connection."""
    return session.connection().connection.cursor()


def raw(session: Session, sql: str, parameters: Any = None) -> list[Any]:
    """Return the rows that a cursor of the driver reads."""
    cursor = cursor_of(session)
    try:
        cursor.execute(sql, *(() if parameters is None else (parameters,)))
        return rows(cursor.fetchall())
    finally:
        cursor.close()


for _name, _policy, _sql in (
    ('plain', 'notes', 'SELECT id, text FROM notes'),
    ('lower case', 'notes', 'select id, text from notes'),
    ('folded name', 'notes', 'SELECT id, TEXT FROM NOTES'),
    ('quoted name', 'notes', 'SELECT id, text FROM "notes"'),
    ('comment between', 'notes', 'SELECT id, text FROM/**/notes'),
    ('comment before', 'notes', '/* DELETE */ -- more\nSELECT text FROM notes'),
    ('name in a string', 'notes', "SELECT text, ' FROM teams' FROM notes"),
    ('alias', 'notes', 'SELECT teams.text FROM notes AS teams'),
    ('join', TEAM_NOTES, 'SELECT code, text FROM teams JOIN notes ON notes.team_id = teams.id'),
    ('natural join', TEAM_NOTES, 'SELECT count(*) FROM teams NATURAL JOIN notes'),
    ('comma', TEAM_NOTES, 'SELECT code, text FROM teams, notes'),
    ('parentheses', 'notes', '(SELECT text FROM notes)'),
    ('cte', 'notes', 'WITH n AS (SELECT text FROM notes) SELECT * FROM n'),
    ('cte that shadows', TEAM_NOTES, 'WITH teams AS (SELECT text FROM notes) SELECT * FROM teams'),
    (
        'recursive cte',
        'nodes',
        (
            'WITH RECURSIVE t AS (SELECT id, name FROM nodes WHERE id = 1 UNION ALL '
            'SELECT n.id, n.name FROM nodes n JOIN t ON n.parent_id = t.id) SELECT name FROM t'
        ),
    ),
    ('subquery', 'notes', 'SELECT * FROM (SELECT text FROM notes) AS n'),
    ('scalar subquery', 'notes', 'SELECT (SELECT max(text) FROM notes)'),
    (
        'exists',
        TEAM_NOTES,
        ('SELECT code FROM teams t WHERE EXISTS (SELECT 1 FROM notes WHERE team_id = t.id)'),
    ),
    ('union', TEAM_NOTES, 'SELECT code FROM teams UNION SELECT text FROM notes'),
    ('values', 'notes', 'SELECT text FROM notes WHERE id IN (VALUES (1), (2))'),
    ('case', 'notes', 'SELECT CASE WHEN EXISTS (SELECT 1 FROM notes WHERE n > 50) THEN 1 END'),
    ('window', 'notes', 'SELECT text, row_number() OVER (ORDER BY id) FROM notes'),
    ('view', 'notes', 'SELECT text FROM notes_view'),
    ('view with a join', TEAM_NOTES, 'SELECT code, notes FROM teams_view'),
    ('comma in a name', [Comma], 'SELECT text FROM "a,b"'),
    ('space in a name', [Lead], 'SELECT text FROM " lead"'),
    ('name that is not ASCII', [Apple], 'SELECT text FROM "Äpfel"'),
    ('longest name', [Long], f'SELECT text FROM {LONG}'),
    ('semicolon', 'notes', 'SELECT text FROM notes;'),
):
    read(f'text: {_name}', _policy, lambda s, sql=_sql: texted(s, sql))

for _name, _policy, _sql in (
    ('unicode name', [Apple], 'SELECT text FROM U&"\\00C4pfel"'),
    ('name that is cut', [Long], f'SELECT text FROM {LONG}yyyy'),
    ('table', 'notes', 'TABLE notes'),
    ('only', 'stocks', 'SELECT name FROM ONLY stocks'),
    ('star', 'stocks', 'SELECT name FROM stocks *'),
    (
        'lateral',
        TEAM_NOTES,
        (
            'SELECT code, x.text FROM teams, LATERAL '
            '(SELECT text FROM notes WHERE team_id = teams.id) AS x'
        ),
    ),
    ('array of a subquery', 'notes', 'SELECT ARRAY(SELECT text FROM notes ORDER BY id)'),
    ('row type', 'notes', 'SELECT notes::text FROM notes'),
    ('qualified', 'notes', f'SELECT text FROM {ONE}.notes'),
    ('qualified column', 'notes', f'SELECT {ONE}.notes.text FROM {ONE}.notes'),
    ('other tenant', ['notes'], f'SELECT text FROM {TWO}.notes'),
    (
        'join with another tenant',
        ['notes'],
        f'SELECT a.text, b.text FROM notes a JOIN {TWO}.notes b USING (id)',
    ),
    ('shared', COUNTRIES, f'SELECT name FROM {SHARED}.countries'),
    (
        'tables of the catalog',
        ['notes'],
        "SELECT attname FROM pg_attribute WHERE attrelid = 'notes'::regclass AND attnum > 0",
    ),
    ('tablesample', 'notes', 'SELECT text FROM notes TABLESAMPLE SYSTEM (100)'),
    ('materialised view', 'notes', 'SELECT text FROM notes_now'),
    ('nested view', 'notes', 'SELECT text FROM nested_view'),
    ('view with a subquery', 'remarks', 'SELECT n FROM counted_view'),
    ('row level security', ['secrets', 'permits'], 'SELECT text FROM secrets'),
    ('partition', 'measures', 'SELECT value FROM measures_north'),
    ('partition by its key', 'measures', "SELECT value FROM measures WHERE region = 'north'"),
    ('child', 'stocks', 'SELECT name FROM stocks_child'),
    ('last value of a sequence', 'tickets', 'SELECT last_value FROM ticket_numbers'),
):
    read(f'text: {_name}', _policy, lambda s, sql=_sql: texted(s, sql), databases=POSTGRESQL)

read('text: parameters', 'notes', lambda s: texted(s, 'SELECT text FROM notes WHERE n > :n', n=1))
read(
    'text: escaped colon',
    'notes',
    lambda s: texted(s, "SELECT text FROM notes WHERE text <> '\\:n'"),
)
read(
    'text: on the connection',
    'notes',
    lambda s: rows(s.connection().execute(text('SELECT text FROM notes'))),
)
read(
    'text: typed columns',
    'notes',
    lambda s: rows(s.execute(text('SELECT id, text FROM notes').columns(id=Integer, text=String))),
)
read(
    'text: joined as a cte',
    TEAM_NOTES,
    lambda s: rows(
        s.execute(
            select(
                text('SELECT id, text FROM notes')
                .columns(column('id'), column('text'))
                .cte('n')
                .c.text
            )
        )
    ),
)
read(
    'text: entity and text',
    'notes',
    lambda s: rows(s.execute(select(Note.id, text('notes.text')))),
)
read(
    'text: stream_results',
    'notes',
    lambda s: rows(
        s.connection().execute(
            text('SELECT text FROM notes'), execution_options={'stream_results': True}
        )
    ),
)
read(
    'text: in a savepoint that is rolled back',
    'notes',
    lambda s: in_savepoint(s, lambda: texted(s, 'SELECT text FROM notes')),
)
read('text: percent in a name', [Percent], lambda s: raw(s, 'SELECT text FROM """%(x)s"""'))


def in_savepoint(session: Session, reading: Any, kept: bool = False) -> Any:
    """Return what is read in a savepoint, which is rolled back unless it is kept."""
    with session.begin_nested() as savepoint:
        value = reading()
        if not kept:
            savepoint.rollback()
    return value


read(
    'orm: in a savepoint that is rolled back',
    'notes',
    lambda s: in_savepoint(s, lambda: sorted(n.text for n in s.scalars(select(Note)))),
)
read(
    'orm: in a savepoint',
    'notes',
    lambda s: in_savepoint(s, lambda: sorted(n.text for n in s.scalars(select(Note))), kept=True),
)

# the driver
read(
    'driver: exec_driver_sql',
    'notes',
    lambda s: rows(s.connection().exec_driver_sql('SELECT text FROM notes')),
)
read(
    'driver: exec_driver_sql of odd tables',
    list(ODD),
    lambda s: rows(
        s.connection().exec_driver_sql(
            'SELECT text FROM "a,b" UNION ALL SELECT text FROM " lead" '
            f'UNION ALL SELECT text FROM "Äpfel" UNION ALL SELECT text FROM {LONG}'
        )
    ),
)
read('driver: cursor', 'notes', lambda s: raw(s, 'SELECT text FROM notes'))
read(
    'driver: cursor of the session, twice',
    TEAM_NOTES,
    lambda s: [raw(s, 'SELECT text FROM notes'), raw(s, 'SELECT code FROM teams')],
)
read(
    'driver: cursor, then the ORM',
    TEAM_NOTES,
    lambda s: [
        raw(s, 'SELECT text FROM notes'),
        sorted(s.scalars(select(column('code')).select_from(text('teams')))),
    ],
)
read(
    'driver: connection.execute',
    'notes',
    lambda s: rows(
        s.connection().connection.dbapi_connection.execute('SELECT text FROM notes').fetchall()
    ),
)


def server_cursor(session: Session) -> list[Any]:
    """Return the rows that a named cursor of the driver reads."""
    connection: Any = session.connection().connection.dbapi_connection
    with connection.cursor('matrix') as cursor:
        cursor.execute('SELECT text FROM notes')
        return rows(cursor.fetchall())


def declared(session: Session) -> list[Any]:
    """Return the rows that FETCH reads."""
    session.execute(text('DECLARE matrix_declared CURSOR FOR SELECT text FROM notes'))
    found = texted(session, 'FETCH ALL FROM matrix_declared')
    session.execute(text('CLOSE matrix_declared'))
    return found


def copied(session: Session, what: str) -> list[str]:
    """Return the lines that COPY gives."""
    lines = []
    with cursor_of(session) as cursor, cursor.copy(f'COPY {what} TO STDOUT') as copy:
        for line in copy:
            lines.append(bytes(line).decode())  # noqa: PERF401
    return sorted(lines)


def prepared(session: Session) -> list[Any]:
    """Return the rows that a prepared statement reads."""
    session.execute(text('PREPARE matrix_prepared AS SELECT text FROM notes'))
    found = texted(session, 'EXECUTE matrix_prepared')
    session.execute(text('DEALLOCATE matrix_prepared'))
    return found


def several(session: Session) -> list[Any]:
    """Return the rows of the last of several statements in one string."""
    with cursor_of(session) as cursor:
        cursor.execute('SELECT code FROM teams; SELECT text FROM notes')
        cursor.nextset()
        return rows(cursor.fetchall())


def with_path(session: Session, path: str, sql: str) -> list[Any]:
    """Return the rows of a text, read with another search path, which is put back."""
    before = session.scalar(text("SELECT current_setting('search_path')"))
    session.execute(text("SELECT set_config('search_path', :path, true)"), {'path': path})
    found = texted(session, sql)
    session.execute(text("SELECT set_config('search_path', :path, true)"), {'path': before})
    return found


def do_block(session: Session) -> list[Any]:
    """Return what a DO block has found, by a setting."""
    session.execute(
        text(
            "DO $$ BEGIN PERFORM set_config('matrix.found', "
            "(SELECT string_agg(text, ',' ORDER BY id) FROM notes), true); END $$"
        )
    )
    return texted(session, "SELECT current_setting('matrix.found')")


def temporary(session: Session) -> list[Any]:
    """Return the rows of a temporary table that was made of a table."""
    session.execute(text('CREATE TEMP TABLE matrix_copy ON COMMIT DROP AS SELECT text FROM notes'))
    found = texted(session, 'SELECT text FROM matrix_copy')
    session.execute(text('DROP TABLE pg_temp.matrix_copy'))
    return found


for _name, _run in (
    ('cursor on the server', server_cursor),
    ('DECLARE and FETCH', declared),
    ('COPY of a table', lambda s: copied(s, 'notes (id, text)')),
    ('COPY of a query', lambda s: copied(s, '(SELECT text FROM notes)')),
    ('PREPARE and EXECUTE', prepared),
    ('several statements in one string', several),
    ('DO', do_block),
):
    read(f'driver: {_name}', ['notes', 'teams'], _run, databases=POSTGRESQL)
read(
    'driver: cursor of the other tenant',
    ['notes'],
    lambda s: raw(s, f'SELECT text FROM {TWO}.notes'),
    databases=POSTGRESQL,
)
read('driver: temporary table', 'notes', temporary, databases=POSTGRESQL, disturbs=True)
read(
    'path: of the other tenant',
    ['notes'],
    lambda s: with_path(s, TWO, 'SELECT text FROM notes'),
    databases=POSTGRESQL,
    disturbs=True,
)
read(
    'path: of the shared schema',
    COUNTRIES,
    lambda s: with_path(s, SHARED, 'SELECT name FROM countries'),
    databases=POSTGRESQL,
    disturbs=True,
)
read(
    'path: SET LOCAL',
    ['notes'],
    lambda s: (
        s.execute(text(f'SET LOCAL search_path = {TWO}')),
        texted(s, 'SELECT text FROM notes'),
        s.execute(text(f'SET LOCAL search_path = {ONE}, extensions')),
    )[1],
    databases=POSTGRESQL,
    disturbs=True,
)
