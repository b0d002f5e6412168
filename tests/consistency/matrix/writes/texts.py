"""Writes by texts, by the driver and by cursors."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from ..entries import POSTGRESQL, Entries
from ..schema import LONG, ONE, SHARED, TWO
from .core import run

entries = Entries()
write = entries.write

UPDATE = "UPDATE notes SET text = 'changed' WHERE id = 1"


def raw(session: Session, sql: str, parameters: Any = None) -> None:
    """Execute by a cursor of the driver."""
    cursor = session.connection().connection.cursor()
    try:
        cursor.execute(sql, *(() if parameters is None else (parameters,)))
    finally:
        cursor.close()


for _name, _shows, _sql in (
    ('insert', 'orm: all', "INSERT INTO notes (id, text, n) VALUES (90, 'changed', 0)"),
    (
        'insert from a select',
        'orm: all',
        'INSERT INTO notes (id, text, n) SELECT id + 90, text, 0 FROM remarks',
    ),
    ('update', 'orm: all', UPDATE),
    ('update in lower case', 'orm: all', UPDATE.lower()),
    ('update of a folded name', 'orm: all', "UPDATE NOTES SET TEXT = 'changed'"),
    ('update of a quoted name', 'orm: all', 'UPDATE "notes" SET "text" = \'changed\''),
    ('update of an alias', 'orm: all', "UPDATE notes AS teams SET text = 'changed'"),
    ('update with comments', 'orm: all', f'/* SELECT */ {UPDATE} -- FROM teams'),
    ('update without spaces', 'orm: all', "UPDATE/**/notes/**/SET\ntext='changed'"),
    ('update with a semicolon', 'orm: all', f'{UPDATE};'),
    ('update of no row', '', "UPDATE notes SET text = 'changed' WHERE id = 1000"),
    ('delete', 'orm: all', 'DELETE FROM notes WHERE id = 4'),
    ('cascade', 'orm: all of labels', 'DELETE FROM teams WHERE id = 2'),
    ('ON UPDATE CASCADE', 'orm: all of labels', "UPDATE teams SET code = 'c' WHERE id = 2"),
    ('trigger', 'of entries', "UPDATE rooms SET name = 'changed'"),
    ('updatable view', 'orm: all', "UPDATE open_notes SET text = 'changed' WHERE id = 1"),
    ('comma in a name', 'odd|a,b', 'UPDATE "a,b" SET text = \'changed\''),
    ('space in a name', 'odd|lead', 'UPDATE " lead" SET text = \'changed\''),
    ('name that is not ASCII', 'odd', 'UPDATE "Äpfel" SET text = \'changed\''),
    ('longest name', 'odd', f"UPDATE {LONG} SET text = 'changed'"),
    (
        'with a CTE',
        'orm: all',
        (
            "WITH x AS (SELECT 1 AS id) UPDATE notes SET text = 'changed' "
            'WHERE id IN (SELECT id FROM x)'
        ),
    ),
):
    write(f'text: {_name}', _shows, lambda s, sql=_sql: s.execute(text(sql)))

for _name, _shows, _sql in (
    ('update only', 'stocks', "UPDATE ONLY stocks SET name = 'changed'"),
    ('unicode name', 'odd', 'UPDATE U&"\\00C4pfel" SET text = \'changed\''),
    ('name that is cut', 'odd', f"UPDATE {LONG}yyyyyy SET text = 'changed'"),
    (
        'delete using',
        'orm: all of remarks',
        ('DELETE FROM remarks r USING notes n WHERE r.note_id = n.id'),
    ),
    (
        'merge',
        'orm: all',
        (
            'MERGE INTO notes USING remarks ON notes.id = remarks.id '
            "WHEN MATCHED THEN UPDATE SET text = 'changed'"
        ),
    ),
    (
        'merge that deletes',
        'orm: all of remarks',
        ('MERGE INTO remarks r USING notes n ON r.note_id = n.id WHEN MATCHED THEN DELETE'),
    ),
    (
        'CTE with DML',
        'orm: all of remarks',
        ('WITH gone AS (DELETE FROM remarks RETURNING id) SELECT count(*) FROM gone'),
    ),
    ('CTE with DML that is not used', 'orm: all', f'WITH x AS ({UPDATE}) SELECT 1'),
    (
        'two CTEs with DML',
        'orm: all of remarks',
        (
            f'WITH x AS ({UPDATE} RETURNING id), '
            "y AS (UPDATE remarks SET text = 'changed' RETURNING id) SELECT count(*) FROM x, y"
        ),
    ),
    ('truncate', 'orm: all of remarks', 'TRUNCATE remarks'),
    ('truncate of several', 'orm: all of remarks', 'TRUNCATE TABLE remarks, badges'),
    ('truncate cascade', 'orm: all of remarks', 'TRUNCATE notes CASCADE'),
    ('truncate only, with a trigger', 'of entries', 'TRUNCATE ONLY nodes RESTART IDENTITY'),
    ('truncate of a partition', 'measures', 'TRUNCATE measures_north'),
    ('truncate of a parent', 'stocks', 'TRUNCATE stocks'),
    ('partition', 'measures', 'UPDATE measures_north SET value = 5'),
    ('partition, insert', 'measures', "INSERT INTO measures_south VALUES (9, 'south', 1)"),
    ('child', 'stocks', "UPDATE stocks_child SET name = 'changed'"),
    ('rule', 'of entries', "UPDATE labels SET name = 'changed'"),
    ('view with a rule', 'orm: all of remarks', "INSERT INTO ruled VALUES (90, 'changed')"),
    ('view with a trigger', 'core: full', "UPDATE teams_view SET code = 'x' WHERE notes = 0"),
    ('permit of a row', 'row level', 'INSERT INTO permits VALUES (2, 2)'),
    ('DO', 'orm: all', f'DO $$ BEGIN {UPDATE}; END $$'),
    ('DO, dynamic', 'orm: all', "DO $$ BEGIN EXECUTE 'UPDATE no' || 'tes SET n = 60'; END $$"),
    (
        'DO with EXCEPTION',
        '',
        (
            f'DO $$ BEGIN {UPDATE}; RAISE division_by_zero; '
            'EXCEPTION WHEN division_by_zero THEN NULL; END $$'
        ),
    ),
    ('explain analyze', 'orm: all', f'EXPLAIN ANALYZE {UPDATE}'),
    ('explain, a comment, analyze', 'orm: all', f'EXPLAIN /* no */ ANALYZE {UPDATE}'),
    ('explain with options', 'orm: all', f'EXPLAIN (COSTS OFF, ANALYZE TRUE) {UPDATE}'),
    ('explain only', '', f'EXPLAIN {UPDATE}'),
    ('refresh', '', 'REFRESH MATERIALIZED VIEW notes_now'),
    ('qualified, own tenant', 'orm: all', f"UPDATE {ONE}.notes SET text = 'changed'"),
    ('qualified, quoted', 'orm: all', f'UPDATE "{ONE}" . "notes" SET text = \'changed\''),
    ('qualified, other tenant', 'other tenant', f"UPDATE {TWO}.notes SET text = 'changed'"),
    (
        'from another tenant',
        'orm: all',
        (f'INSERT INTO notes (id, text, n) SELECT id + 90, text, 0 FROM {TWO}.notes'),
    ),
    ('shared table', 'countries|shared', f"UPDATE {SHARED}.countries SET name = 'changed'"),
    ('other tenant, cascade', 'other tenant', f'DELETE FROM {TWO}.teams WHERE id = 2'),
    ('sequence', 'last value', "SELECT nextval('ticket_numbers')"),
    ('sequence set', 'last value', "SELECT setval('ticket_numbers', 500)"),
    ('notify', '', 'NOTIFY matrix'),
    ('lock table', '', 'LOCK TABLE notes IN EXCLUSIVE MODE'),
    ('lock rows', '', 'SELECT text FROM notes FOR UPDATE'),
    ('large object', '', "SELECT lo_from_bytea(0, 'changed')"),
    ('advisory lock', '', 'SELECT pg_advisory_xact_lock(7)'),
    ('set constraints', '', 'SET CONSTRAINTS ALL IMMEDIATE'),
):
    write(f'text: {_name}', _shows, lambda s, sql=_sql: s.execute(text(sql)), databases=POSTGRESQL)

write(
    'text: refresh after a change',
    'view: materialised',
    lambda s: (s.execute(text(UPDATE)), s.execute(text('REFRESH MATERIALIZED VIEW notes_now'))),
    databases=POSTGRESQL,
)
write(
    'text: parameters',
    'orm: all',
    lambda s: s.execute(
        text('UPDATE notes SET text = :text WHERE id = :id'), {'text': 'changed', 'id': 1}
    ),
)
write(
    'text: several sets of parameters',
    'orm: all',
    lambda s: s.execute(
        text('UPDATE notes SET text = :text WHERE id = :id'),
        [{'text': 'changed', 'id': 1}, {'text': 'changed', 'id': 2}],
    ),
)
write('text: on the connection', 'orm: all', lambda s: run(s, text(UPDATE)))
write(
    'text: two, one after the other',
    'orm: all of remarks',
    lambda s: [s.execute(text(sql)) for sql in (UPDATE, "UPDATE remarks SET text = 'changed'")],
)

# the driver
write('driver: exec_driver_sql', 'orm: all', lambda s: s.connection().exec_driver_sql(UPDATE))
write('driver: cursor', 'orm: all', lambda s: raw(s, UPDATE))
write(
    'driver: cursor after objects',
    'orm: all',
    lambda s: (s.execute(text("UPDATE remarks SET text = 'changed'")), raw(s, UPDATE)),
)
write(
    'driver: connection.execute',
    'orm: all',
    lambda s: s.connection().connection.dbapi_connection.execute(UPDATE),
)
write(
    'driver: cursor of an odd table',
    'percent',
    lambda s: raw(s, 'UPDATE """%(x)s""" SET text = \'changed\''),
)
write(
    'driver: cursor, shared table',
    'shared',
    lambda s: raw(s, f"UPDATE {SHARED}.countries SET name = 'changed'"),
    databases=POSTGRESQL,
)
write(
    'driver: cursor, other tenant',
    'other tenant',
    lambda s: raw(s, f"UPDATE {TWO}.notes SET text = 'changed'"),
    databases=POSTGRESQL,
)
write(
    'driver: several statements in one string',
    'orm: all of remarks',
    lambda s: raw(s, f"{UPDATE}; UPDATE remarks SET text = 'changed'"),
    databases=POSTGRESQL,
)
write(
    'driver: a SELECT, then an UPDATE',
    'orm: all',
    lambda s: s.connection().exec_driver_sql(f'SELECT 1; {UPDATE}'),
    databases=POSTGRESQL,
)


def copy(session: Session, target: str, lines: str) -> None:
    """Send lines to COPY FROM."""
    with session.connection().connection.cursor() as cursor:
        with cursor.copy(f'COPY {target} FROM STDIN') as stream:
            stream.write(lines)


def pipeline(session: Session) -> None:
    connection: Any = session.connection().connection.dbapi_connection
    with connection.pipeline():
        connection.execute(UPDATE)


def executemany(session: Session) -> None:
    with session.connection().connection.cursor() as cursor:
        cursor.executemany('UPDATE notes SET text = %s WHERE id = %s', [('changed', 1)])


def server_side_prepared(session: Session) -> None:
    session.execute(text(f'PREPARE matrix_write AS {UPDATE}'))
    session.execute(text('EXECUTE matrix_write'))
    session.execute(text('DEALLOCATE matrix_write'))


def updated_by_cursor(session: Session) -> None:
    # of one row: without an order the first one is another after a rollback
    session.execute(
        text('DECLARE matrix_current CURSOR FOR SELECT id FROM notes WHERE id = 1 FOR UPDATE')
    )
    session.execute(text('FETCH 1 FROM matrix_current'))
    session.execute(text("UPDATE notes SET text = 'changed' WHERE CURRENT OF matrix_current"))


def with_path(session: Session, path: str, sql: str) -> None:
    """Write with another search path, which is put back."""
    session.execute(text(f'SET LOCAL search_path = {path}'))
    session.execute(text(sql))
    session.execute(text(f'SET LOCAL search_path = {ONE}, extensions'))


for _name, _shows, _run in (
    (
        'driver: COPY FROM',
        'orm: all',
        lambda s: copy(s, 'notes (id, text, n)', '90\tchanged\t0\n'),
    ),
    (
        'driver: COPY FROM to the other tenant',
        'other tenant',
        lambda s: copy(s, f'{TWO}.notes (id, text, n)', '90\tchanged\t0\n'),
    ),
    (
        'driver: COPY FROM to a partition',
        'measures',
        lambda s: copy(s, 'measures', '9\tnorth\t99\n'),
    ),
    ('driver: pipeline', 'orm: all', pipeline),
    ('driver: executemany', 'orm: all', executemany),
    ('driver: PREPARE and EXECUTE', 'orm: all', server_side_prepared),
    ('driver: WHERE CURRENT OF', 'orm: all', updated_by_cursor),
    (
        'function by its qualified name',
        'orm: all',
        lambda s: s.execute(text(f"SELECT {ONE}.touch_notes('changed')")),
    ),
    (
        'driver: cursor with the path of the other tenant',
        'other tenant',
        lambda s: raw(
            s,
            f'SET LOCAL search_path = {TWO}; {UPDATE}; '
            f'SET LOCAL search_path = {ONE}, extensions',
        ),
    ),
    (
        'temporary table that shadows',
        '',
        lambda s: (
            s.execute(text('CREATE TEMP TABLE badges (LIKE badges) ON COMMIT DROP')),
            s.execute(text("INSERT INTO pg_temp.badges VALUES (90, 1, 'changed')")),
            s.execute(text('DROP TABLE pg_temp.badges')),
        ),
    ),
    (
        'temporary table, copied back',
        'orm: all',
        lambda s: (
            s.execute(text('CREATE TEMP TABLE matrix_temp ON COMMIT DROP AS SELECT * FROM notes')),
            s.execute(text("UPDATE matrix_temp SET text = 'changed'")),
            s.execute(
                text('UPDATE notes n SET text = t.text FROM matrix_temp t WHERE t.id = n.id')
            ),
        ),
    ),
):
    write(_name, _shows, _run, databases=POSTGRESQL)

for _name, _shows, _run in (
    ('of the other tenant', 'other tenant', lambda s: with_path(s, TWO, UPDATE)),
    (
        'of the shared schema',
        'countries|shared',
        lambda s: with_path(s, SHARED, "UPDATE countries SET name = 'changed'"),
    ),
    (
        'set_config',
        'other tenant',
        lambda s: (
            s.execute(text(f"SELECT set_config('search_path', '{TWO}', true)")),
            s.execute(text(UPDATE)),
            s.execute(text(f"SELECT set_config('search_path', '{ONE}, extensions', true)")),
        ),
    ),
):
    write(f'path: {_name}', _shows, _run, databases=POSTGRESQL, hosts=False)

# the end of the transaction, behind SQLAlchemy
CONTROL = ('TextualControlError', 'OrmCacheError', 'PendingRollbackError')
write(
    'end: text COMMIT',
    '',
    lambda s: (s.execute(text(UPDATE)), s.execute(text('COMMIT'))),
    ends=True,
    refused=CONTROL,
)
write(
    'end: text ROLLBACK',
    '',
    lambda s: (s.execute(text(UPDATE)), s.execute(text('ROLLBACK'))),
    ends=True,
    refused=CONTROL,
)
write(
    'end: COMMIT in several statements',
    '',
    lambda s: s.connection().exec_driver_sql(f'{UPDATE}; COMMIT'),
    databases=POSTGRESQL,
    ends=True,
    refused=CONTROL,
)
write(
    'end: COMMIT and BEGIN in one string',
    '',
    lambda s: raw(s, f'{UPDATE}; COMMIT; BEGIN'),
    databases=POSTGRESQL,
    ends=True,
    refused=CONTROL,
)
write(
    'end: COMMIT by a cursor',
    '',
    lambda s: (raw(s, UPDATE), raw(s, 'COMMIT')),
    ends=True,
    refused=CONTROL,
)
write(
    'end: commit of the driver',
    '',
    lambda s: (raw(s, UPDATE), s.connection().connection.dbapi_connection.commit()),
    ends=True,
    refused=CONTROL,
)
write(
    'end: rollback of the driver',
    '',
    lambda s: (raw(s, UPDATE), s.connection().connection.dbapi_connection.rollback()),
    ends=True,
    refused=CONTROL,
)
write(
    'end: procedure that commits',
    '',
    lambda s: s.execute(text("CALL rename_and_commit('changed')")),
    databases=POSTGRESQL,
    ends=True,
    refused=('InvalidTransactionTermination', *CONTROL),
)
