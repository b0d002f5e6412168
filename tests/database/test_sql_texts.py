"""The analyzer tells from a statement's text which tables it reads, writes and deletes from."""

from __future__ import annotations

import pytest

from onegov_ormcache.database.statements import Statement, StatementAnalyzer
from tests.database.analysis import POSTGRESQL, SQLITE, analyzed, touching

BOTH: list[tuple[str, Statement]] = [
    # Reads
    ('SELECT 1', touching()),
    ('SELECT * FROM users', touching('users')),
    ('SELECT * FROM Users u JOIN "Groups" g ON u.id = g.id', touching('users Groups')),
    ('SELECT * FROM town.users, groups', touching('town.users groups')),
    (
        'SELECT * FROM (users u JOIN b ON u.id = b.id) LEFT JOIN c USING (id)',
        touching('users b c'),
    ),
    ('SELECT (SELECT max(id) FROM a), b.* FROM b', touching('a b')),
    (
        'SELECT * FROM a WHERE EXISTS (SELECT 1 FROM b) OR x NOT IN (SELECT y FROM c)',
        touching('a b c'),
    ),
    ('SELECT * FROM a UNION SELECT * FROM b EXCEPT SELECT * FROM c', touching('a b c')),
    ('SELECT * FROM (SELECT * FROM a) AS b ORDER BY (SELECT x FROM c LIMIT 1)', touching('a c')),
    ('SELECT count(*) FROM a GROUP BY x HAVING count(*) > (SELECT 1 FROM b)', touching('a b')),
    ('SELECT CASE WHEN EXISTS (SELECT 1 FROM a) THEN 1 END', touching('a')),
    ('VALUES (1), ((SELECT 2 FROM a))', touching('a')),
    # Strings and comments that look like SQL
    ("SELECT 'DELETE FROM b; -- ' FROM users -- ; DELETE FROM c", touching('users')),
    ("SELECT 'it''s; DELETE FROM b' FROM users", touching('users')),
    ('/* DELETE FROM b; */ SELECT "DELETE FROM c" FROM users', touching('users')),
    ('-- DELETE FROM users', touching()),
    ('', touching()),
    (' ; ', touching()),
    # Common table expressions
    ('WITH x AS (SELECT * FROM a) SELECT * FROM x JOIN b ON true', touching('a b')),
    ('WITH x AS (SELECT * FROM a) SELECT * FROM x UNION SELECT * FROM x', touching('a')),
    ('WITH x AS (SELECT * FROM a), y AS (SELECT * FROM x) SELECT * FROM y', touching('a')),
    ('SELECT * FROM (WITH x AS (SELECT * FROM a) SELECT * FROM x) s, x', touching('a x')),
    ('WITH x AS (SELECT 1) SELECT * FROM town.x', touching('town.x')),
    ('WITH town AS (SELECT 1) SELECT * FROM town.x', touching('town.x')),
    ('WITH x AS (SELECT 1) SELECT (SELECT 1 FROM x)', touching()),
    (
        (
            'WITH RECURSIVE t(n) AS (SELECT id FROM a UNION ALL SELECT n FROM t JOIN b ON true) '
            'SELECT * FROM t'
        ),
        touching('a b'),
    ),
    ('WITH x AS (SELECT * FROM a) INSERT INTO x SELECT * FROM x', touching('a', 'x')),
    ('INSERT INTO b WITH x AS (SELECT * FROM a) SELECT * FROM x', touching('a', 'b')),
    ('WITH x AS (SELECT 1) UPDATE x SET y = 2', touching('', 'x', updates='x.y')),
    # Inserts
    ('INSERT INTO users (id, name) VALUES (1, 2), (3, 4)', touching('', 'users')),
    ('INSERT INTO town."Users" DEFAULT VALUES', touching('', 'town.Users')),
    ('INSERT INTO users SELECT * FROM b', touching('b', 'users')),
    ('INSERT INTO users VALUES ((SELECT max(id) FROM b)) RETURNING id', touching('b', 'users')),
    ('INSERT INTO users VALUES (1) ON CONFLICT DO NOTHING', touching('', 'users')),
    (
        (
            'INSERT INTO users AS u (id, a) SELECT * FROM c WHERE true ON CONFLICT (id) '
            'DO UPDATE SET a = excluded.a, b = (SELECT 1 FROM d) WHERE u.a > 1'
        ),
        touching('c d', 'users', updates='users.a users.b'),
    ),
    # Updates
    (
        'UPDATE users SET name = 1, "Mail" = 2',
        touching('', 'users', updates='users.name users.Mail'),
    ),
    (
        (
            'UPDATE town.users AS u SET (x, y) = (SELECT 1, 2 FROM a) FROM b JOIN c ON true '
            'WHERE u.id IN (SELECT id FROM d) RETURNING u.id'
        ),
        touching('a b c d', 'town.users', updates='town.users.x town.users.y'),
    ),
    ('UPDATE users SET x = 1 FROM users AS o', touching('users', 'users', updates='users.x')),
    # Deletes
    ('DELETE FROM users', touching('', 'users', 'users')),
    (
        'DELETE FROM town.users WHERE id IN (SELECT x FROM b)',
        touching('b', 'town.users', 'town.users'),
    ),
    # Definitions
    ('CREATE TABLE users (id int REFERENCES groups (id))', touching()),
    ('CREATE TABLE copied AS SELECT * FROM users', touching('users', 'copied')),
    ('CREATE VIEW v AS SELECT * FROM users', touching('users', 'v')),
    ('CREATE UNIQUE INDEX i ON users (name)', touching()),
    ('DROP TABLE IF EXISTS town.users', touching('', 'town.users', 'town.users')),
    ('DROP VIEW v', touching('', 'v', 'v')),
    ('DROP INDEX i', touching()),
    ('CREATE TABLE users (a int, b int GENERATED ALWAYS AS (a * 2) STORED)', touching()),
    ('ALTER TABLE users ADD COLUMN x int', touching('', 'users', 'users')),
    ('ALTER TABLE "Users" RENAME TO people', touching('', 'Users people', 'Users people')),
    # Nothing
    ('BEGIN', touching()),
    ('COMMIT', touching()),
    ('ROLLBACK', touching()),
    ('SAVEPOINT sa_savepoint_1', touching()),
    ('ROLLBACK TO SAVEPOINT sa_savepoint_1', touching()),
    ('RELEASE SAVEPOINT sa_savepoint_1', touching()),
    ('VACUUM', touching()),
    ('ANALYZE users', touching()),
    ('EXPLAIN DELETE FROM users', touching()),
    # Several
    (
        'DELETE FROM a; INSERT INTO b VALUES (1); SAVEPOINT x; SELECT * FROM c;',
        touching('c', 'a b', 'a'),
    ),
]

ONLY_POSTGRESQL: list[tuple[str, Statement]] = [
    ('SELECT * FROM ONLY users *', touching('users')),
    ('TABLE users', touching('users')),
    ('SELECT * FROM db.town.users', touching('town.users')),
    ('SELECT * FROM users u FOR NO KEY UPDATE OF u SKIP LOCKED', touching('users')),
    ('SELECT * FROM a, LATERAL (SELECT * FROM b WHERE b.id = a.id) x', touching('a b')),
    ('SELECT ARRAY(SELECT id FROM b), x = ANY(SELECT y FROM c) FROM a', touching('a b c')),
    ('SELECT DISTINCT ON (x) x::town.kind FROM a TABLESAMPLE SYSTEM (1)', touching('a')),
    (r"SELECT 'a\'; DELETE FROM users; --'", touching('', 'users', 'users')),
    (r"SELECT E'a\'; DELETE FROM users; --'", touching()),
    ('SELECT $x$; DELETE FROM users; $x$', touching()),
    ('/* /* */ DELETE FROM b; */ SELECT * FROM users', touching('users')),
    ("SELECT a ? 'b', c @> '{}', d #>> '{a}' FROM users", touching('users')),
    # Within a CTE that is not recursive, its own name stands for the table of that name
    ('WITH users AS (SELECT * FROM users) SELECT * FROM users', touching('users')),
    ('WITH x AS (SELECT * FROM y), y AS (SELECT 1) SELECT * FROM x', touching('y')),
    # Functions
    ('SELECT * FROM generate_series(1, 3) g, unnest(ARRAY[1]), json_each(x)', touching()),
    ("SELECT * FROM jsonb_to_recordset('[]') AS x(a int)", touching()),
    ('SELECT * FROM Found(1), town."Lost"(2)', touching('found() town.Lost()')),
    ('SELECT * FROM a, LATERAL town.found(a.id)', touching('a town.found()')),
    ('SELECT * FROM ROWS FROM (found(1), lost(2))', touching('found() lost()')),
    (
        'SELECT archive(1), town.prune(), now(), pg_catalog.version()',
        touching('archive() town.prune()'),
    ),
    ("SELECT set_config('a', 'b', true), nextval('x'), pg_advisory_xact_lock(1)", touching()),
    # Changes in CTEs
    (
        (
            'WITH x AS (DELETE FROM a RETURNING *), y AS (UPDATE c SET z = 1 RETURNING *) '
            'INSERT INTO b SELECT * FROM x, y'
        ),
        touching('', 'a b c', 'a', 'c.z'),
    ),
    ('DELETE FROM ONLY users u USING b JOIN c ON true', touching('b c', 'users', 'users')),
    ('UPDATE a SET b[1] = 2, c.d = 3, (e) = ROW(4)', touching('', 'a', '', 'a.b a.c a.e')),
    ('SELECT * INTO copied FROM users', touching('users', 'copied')),
    ('TRUNCATE users', touching('', 'users', 'users')),
    (
        'TRUNCATE TABLE ONLY users *, town."B" RESTART IDENTITY',
        touching('', 'users town.B', 'users town.B'),
    ),
    ('DROP TABLE a, temp CASCADE', touching('', 'a temp', 'a temp')),
    ('ALTER TABLE IF EXISTS ONLY users ENABLE ROW LEVEL SECURITY', touching('', 'users', 'users')),
    ('REFRESH MATERIALIZED VIEW CONCURRENTLY town.v', touching('', 'town.v', 'town.v')),
    ('CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ DELETE FROM users $$', touching()),
    ('CREATE EXTENSION hstore', touching()),
    # MERGE
    (
        (
            'MERGE INTO users u USING b ON u.id = b.id '
            'WHEN MATCHED AND EXISTS (SELECT 1 FROM c) THEN DELETE '
            'WHEN MATCHED THEN UPDATE SET x = (SELECT 1 FROM d) '
            'WHEN NOT MATCHED THEN INSERT (id) VALUES (b.id)'
        ),
        touching('b c d', 'users', 'users', 'users.x'),
    ),
    (
        (
            'WITH c AS (SELECT * FROM b) MERGE INTO users USING c ON true '
            'WHEN MATCHED THEN UPDATE SET (x, y) = (1, 2) WHEN NOT MATCHED THEN DO NOTHING'
        ),
        touching('b', 'users', '', 'users.x users.y'),
    ),
    # Commands
    ('SET search_path TO town', touching()),
    ('SET LOCAL lock_timeout = 1', touching()),
    ('SHOW search_path', touching()),
    ('LOCK TABLE users IN EXCLUSIVE MODE', touching()),
    ('LISTEN x', touching()),
    ("NOTIFY x, 'y'", touching()),
    ("PREPARE TRANSACTION 'x'", touching()),
    ('EXPLAIN (COSTS off) DELETE FROM users', touching()),
    ('EXPLAIN ANALYZE VERBOSE DELETE FROM users', touching('', 'users', 'users')),
    ('EXPLAIN (COSTS off, ANALYZE) SELECT * FROM users', touching('users')),
    ('DECLARE c CURSOR FOR SELECT * FROM users FOR UPDATE', touching('users')),
    ('FETCH 10 FROM c', touching()),
    ('COPY users (a, b) FROM STDIN WITH (FORMAT csv)', touching('', 'users')),
    ('COPY town.users TO STDOUT', touching('town.users')),
    ('COPY (SELECT * FROM users JOIN b ON true) TO STDOUT', touching('users b')),
]

ONLY_SQLITE: list[tuple[str, Statement]] = [
    ('WITH r(n) AS (SELECT 1 UNION ALL SELECT n FROM r) SELECT * FROM r', touching()),
    ('SELECT * FROM [Users] JOIN `b`', touching('Users b')),
    ('SELECT * FROM a WHERE x IN users', touching('a users')),
    ('SELECT * FROM users INDEXED BY i LIMIT ? OFFSET ?', touching('users')),
    ('SELECT * FROM users, json_each(users.data)', touching('users')),
    ('INSERT INTO users (a, b) VALUES (?1, :name)', touching('', 'users')),
    ('INSERT OR REPLACE INTO users (a) VALUES (?)', touching('', 'users', 'users')),
    ('REPLACE INTO users SELECT * FROM b', touching('b', 'users', 'users')),
    ('UPDATE OR IGNORE users SET a = 1', touching('', 'users', '', 'users.a')),
    ('UPDATE OR REPLACE users SET a = 1', touching('', 'users', 'users', 'users.a')),
    ('PRAGMA main.table_info("users")', touching()),
    ("ATTACH DATABASE 'x' AS y", touching()),
    ('EXPLAIN QUERY PLAN SELECT * FROM users', touching()),
    ('BEGIN IMMEDIATE', touching()),
    ('CREATE VIRTUAL TABLE x USING fts5(a)', touching()),
    ('CREATE TRIGGER t AFTER INSERT ON u BEGIN SELECT 1; END', touching()),
]

UNKNOWN: list[tuple[str, str]] = [
    (POSTGRESQL, 'DO $$ BEGIN DELETE FROM users; END $$'),
    (POSTGRESQL, 'CALL archive(1)'),
    (POSTGRESQL, 'EXECUTE prepared'),
    (POSTGRESQL, 'TRUNCATE users CASCADE'),
    (POSTGRESQL, 'TRUNCATE view'),
    (POSTGRESQL, 'DROP SCHEMA town CASCADE'),
    (POSTGRESQL, "ALTER TYPE kind RENAME VALUE 'a' TO 'b'"),
    (POSTGRESQL, 'CREATE TABLE x AS EXECUTE prepared'),
    (POSTGRESQL, 'WITH x AS (DO $$ a $$) SELECT 1'),
    (POSTGRESQL, 'COPY FROM STDIN'),
    (POSTGRESQL, 'COPY (DELETE FROM users RETURNING *) TO STDOUT'),
    (POSTGRESQL, 'SELECT * FROM users; CALL archive(1)'),
    (POSTGRESQL, 'SELECT * FROM (DELETE FROM users)'),
    (POSTGRESQL, 'IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c'),
    (POSTGRESQL, "SELECT 'unterminated"),
    (POSTGRESQL, 'SELECT ' + '(' * 5000 + '1' + ')' * 5000),
    (POSTGRESQL, 'SELECT 1 -- ' + 'x' * 100_000),
    (SQLITE, 'WITH x AS (SELECT 1) REPLACE INTO users SELECT * FROM x'),
    *(
        (dialect, sql)
        for dialect in (POSTGRESQL, SQLITE)
        for sql in (
            'users',
            'foo bar',
            '1',
            'SELECT FROM WHERE',
            '"SET" x',
            "'SET'",
            '(',
            'DELETE users',
            'EXPLAIN ANALYZE CALL x()',
        )
    ),
]

TEXTS = [
    *((dialect, *case) for case in BOTH for dialect in (POSTGRESQL, SQLITE)),
    *((POSTGRESQL, *case) for case in ONLY_POSTGRESQL),
    *((SQLITE, *case) for case in ONLY_SQLITE),
]


@pytest.mark.parametrize(('dialect', 'sql', 'expected'), TEXTS)
def test_text(dialect: str, sql: str, expected: Statement) -> None:
    """A textual statement touches what its syntax says."""
    assert analyzed(dialect, sql)._replace(control=None) == expected


@pytest.mark.parametrize('dialect', [POSTGRESQL, SQLITE])
@pytest.mark.parametrize(
    ('sql', 'control'),
    [
        ('COMMIT', 'transaction'),
        ('rollback work', 'transaction'),
        ('BEGIN; SELECT 1', 'transaction'),
        ('SELECT 1; -- done\nEND', 'transaction'),
        ("PREPARE TRANSACTION 'x'", 'transaction'),
        ('START TRANSACTION', 'transaction'),
        ('ROLLBACK TO SAVEPOINT a', 'savepoint'),
        ('ROLLBACK TRANSACTION TO a', 'savepoint'),
        ('SAVEPOINT a', None),
        ('RELEASE SAVEPOINT a', None),
        ('PREPARE p AS SELECT 1', None),
        ("SELECT '; COMMIT'", None),
        ('SELECT 1 /* ; COMMIT */', None),
        ('UPDATE users SET name = $$; COMMIT$$', None),
        ('CREATE TRIGGER t AFTER INSERT ON u BEGIN SELECT 1; END', None),
    ],
)
def test_control(dialect: str, sql: str, control: str | None) -> None:
    """`control` says if a text begins or ends a transaction, or undoes a savepoint."""
    assert analyzed(dialect, sql).control == control


@pytest.mark.parametrize(('dialect', 'sql'), UNKNOWN)
def test_unknown(dialect: str, sql: str) -> None:
    """A statement whose tables cannot be told is unknown, with a reason that shows its text."""
    found = analyzed(dialect, sql)
    assert found.unknown is not None
    assert found.unknown.endswith(f': {sql[:80]}')
    assert found == Statement(unknown=found.unknown)


@pytest.mark.parametrize(
    ('sql', 'calls'),
    [
        ('SELECT title_of(id), upper(name) FROM users', 'title_of upper'),
        ('SELECT town.title_of(id), "Title_Of"(id) FROM users', 'title_of Title_Of'),
        ('SELECT 1 FROM users WHERE lower(title_of(id)) IN (SELECT code_of(1) FROM t)',
         'lower title_of code_of'),
        ('UPDATE users SET name = title_of(id) RETURNING code_of(id)', 'title_of code_of'),
        ('SELECT found(1), jsonb_agg(name), pg_sleep(1) FROM found(1)', 'jsonb_agg pg_sleep'),
        ('SELECT users(id), space(id), current_title(1) FROM users', 'users space current_title'),
    ],
)  # fmt: skip
def test_functions_called_for_a_value(sql: str, calls: str) -> None:
    """`calls` has each function called for a value that may be one of the application's."""
    assert StatementAnalyzer(POSTGRESQL).analyze(sql).calls >= frozenset(calls.split())
    assert 'found' not in StatementAnalyzer(POSTGRESQL).analyze(sql).calls
    assert not StatementAnalyzer(SQLITE).analyze(sql).calls
