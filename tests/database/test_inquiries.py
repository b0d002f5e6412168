"""PostgreSQL answers exactly what a transaction has changed and read, by whatever means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.asked import Asked, asking, transaction
from tests.database.fakes import open_scope


@pytest.fixture
def other(make_tenant: Callable[[str], str]) -> str:
    """Another tenant."""
    return make_tenant('other')


@pytest.fixture
def manager(postgres_dsn: str, tenant: str, other: str) -> Iterator[SessionManager]:
    """A session manager whose tenant has tables of every kind."""
    with asking(postgres_dsn, tenant, other) as made:
        yield made


@pytest.fixture
def asked(manager: SessionManager, tenant: str, other: str) -> Iterator[Asked]:
    """A transaction of the tenant."""
    with transaction(manager, tenant, other) as opened:
        yield opened


PEOPLE = {'people', 'simple', 'above', 'counts', 'other.view_of_ours'}
PAGES = {'pages', 'counts'}


@pytest.mark.parametrize(
    ('statement', 'changed'),
    [
        ("UPDATE people SET name = 'x'", PEOPLE),
        ('UPDATE people SET name = NULL WHERE false', set()),
        ('DELETE FROM pages', PAGES),
        ('INSERT INTO people SELECT 9', PEOPLE),
        ('DELETE FROM people', {*PEOPLE, 'child'}),
        ('WITH gone AS (DELETE FROM pages RETURNING id) SELECT * FROM gone', PAGES),
        ('MERGE INTO pages USING people ON false WHEN NOT MATCHED THEN INSERT VALUES (id + 9)',
         PAGES),
        ("UPDATE simple SET name = 'x'", PEOPLE),
        ('SELECT change_pages()', PAGES),
        ('SELECT count(*) FROM people WHERE change_pages() = 1', PAGES),
        ("DO $$ BEGIN EXECUTE 'DELETE FROM ' || 'pages'; END $$", PAGES),
        ('EXPLAIN /* a */ (ANALYZE) DELETE FROM pages', PAGES),
        ('PREPARE p AS DELETE FROM pages; EXECUTE p; DEALLOCATE p', PAGES),
        (('DECLARE c CURSOR FOR SELECT id FROM pages FOR UPDATE; FETCH c; '
         'DELETE FROM pages WHERE CURRENT OF c'), PAGES),
        ('INSERT INTO watched VALUES (1)', {'watched', 'noted'}),
        ('INSERT INTO ruled VALUES (1)', {'ruled', 'noted'}),
        ('TRUNCATE pages', PAGES),
        ('TRUNCATE people CASCADE', {*PEOPLE, 'child'}),
        ('REFRESH MATERIALIZED VIEW kept', {'kept'}),
        ('INSERT INTO parts VALUES (1)', {'parts', 'parts_1'}),
        ('INSERT INTO parts_1 VALUES (1)', {'parts', 'parts_1'}),
        ('INSERT INTO heir VALUES (1)', {'loose', 'heir'}),
        ('DELETE FROM loose', {'loose', 'heir'}),
        ('CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (100) TO (200)',
         {'parts', 'parts_2'}),
        ('ALTER TABLE parts ATTACH PARTITION loose_part FOR VALUES FROM (200) TO (300)',
         {'parts', 'loose_part'}),
        ('ALTER TABLE parts DETACH PARTITION parts_1', {'parts', 'parts_1'}),
        ('DROP TABLE pages CASCADE', {*PAGES, 'kept'}),
        ('ALTER TABLE pages RENAME TO leaves', {*PAGES, 'leaves'}),
        ('ALTER TABLE pages ADD COLUMN more int', PAGES),
        ('CREATE OR REPLACE VIEW simple AS SELECT id, name FROM people WHERE id > 1',
         {'simple', 'above'}),
        ('UPDATE {other}.people SET name = NULL', {'other.people'}),
        ('INSERT INTO {other}.theirs VALUES (1)', {'other.theirs'}),
        ('DROP SCHEMA {other} CASCADE', {'other.people', 'other.pages', 'other.theirs',
                                         'other.view_of_ours'}),
        ('INSERT INTO shared_by_asked.common VALUES (77)', {'shared_by_asked.common'}),
        ('SET LOCAL search_path = {other}; DELETE FROM pages', {'other.pages'}),
    ],
)  # fmt: skip
def test_changes(asked: Asked, statement: str, changed: set[str]) -> None:
    """All relations that a statement may have changed are known, and no others."""
    if 'loose_part' in statement:
        asked.do('CREATE TABLE loose_part (id int)')
    assert asked.changed() <= {'loose_part'}
    asked.do(statement)
    assert asked.changed() == changed
    assert asked.named(asked.last_changes().relations) == changed


@pytest.mark.parametrize(
    'statement',
    [
        'SELECT * FROM people',
        'SELECT * FROM people FOR UPDATE',
        'SELECT count_pages()',
        "SELECT nextval('numbers')",
        'CREATE TEMPORARY TABLE people (id int); INSERT INTO pg_temp.people VALUES (1)',
        'SELECT lo_create(0)',
        "SELECT lo_from_bytea(0, 'x')",
        "SET LOCAL TimeZone = 'Asia/Tokyo'",
        'LOCK TABLE people IN ACCESS SHARE MODE',
        "NOTIFY x, 'y'",
        'SELECT pg_advisory_xact_lock(1)',
    ],
)
def test_changes_of_nothing(asked: Asked, statement: str) -> None:
    """What changes no row that others see is no change."""
    asked.do(statement)
    assert asked.changed() == set()


def test_id_of_the_transaction(asked: Asked) -> None:
    """A transaction that wrote nothing has no id."""
    asked.do('SELECT * FROM people')
    assert asked.inquiry.changes().transaction_id is None
    asked.do('DELETE FROM pages')
    found = asked.inquiry.changes().transaction_id
    assert found is not None
    assert asked.last_changes().transaction_id == found
    assert asked.inquiry.last_changes(is_unclear=False).transaction_id == found


@pytest.mark.parametrize(
    'statement',
    [
        ('CREATE OR REPLACE FUNCTION count_pages() RETURNS bigint LANGUAGE sql AS '
        "'SELECT 1::bigint'"),
        'DROP FUNCTION count_pages()',
        "ALTER TYPE mood ADD VALUE 'c'",
        "ALTER TYPE mood RENAME VALUE 'a' TO 'd'",
        'ALTER SCHEMA {other} RENAME TO {other}_renamed',
        'DROP SCHEMA {other} CASCADE',
        'CREATE POLICY p ON pages USING (true)',
        'CREATE CAST (mood AS int) WITH FUNCTION cast_mood(mood)',
    ],
)
def test_changed_code(asked: Asked, statement: str) -> None:
    """New definitions of functions, types, policies, and names of schemas are noticed."""
    if 'CAST' in statement:
        asked.do("CREATE FUNCTION cast_mood(mood) RETURNS int LANGUAGE sql AS 'SELECT 1'")
    else:
        assert not asked.inquiry.changes().changed_code
    asked.do(statement)
    found = asked.inquiry.changes()
    assert found.changed_code
    assert found.renamed_schemas == ('RENAME TO' in statement)
    assert asked.last_changes().changed_code


def test_no_changed_code(asked: Asked) -> None:
    """Rows, temporary tables and new tables are no code."""
    asked.do(
        'DELETE FROM pages', 'CREATE TABLE new (id int)', 'CREATE TEMPORARY TABLE new (id int)'
    )
    assert not asked.inquiry.changes().changed_code


@pytest.mark.parametrize(
    ('statement', 'is_redefined'),
    [
        ('ALTER TABLE pages ADD COLUMN more int', True),
        ('DROP TABLE pages CASCADE', True),
        ('CREATE TRIGGER t AFTER INSERT ON pages EXECUTE FUNCTION note()', True),
        ('CREATE RULE r AS ON DELETE TO pages DO INSTEAD NOTHING', True),
        ('CREATE TABLE refers (id int REFERENCES pages)', True),
        ('CREATE VIEW new AS SELECT id FROM pages', True),
        ('ALTER TABLE pages ENABLE ROW LEVEL SECURITY', True),
        ('DELETE FROM pages', False),
        ("UPDATE people SET name = 'x'", False),
        ('SELECT * FROM pages FOR UPDATE', False),
    ],
)
def test_redefined(asked: Asked, tenant: str, statement: str, is_redefined: bool) -> None:
    """The schemas are known in which definitions of tables may have changed."""
    asked.do(statement)
    assert asked.inquiry.changes().redefined == ({tenant} if is_redefined else set())


def test_changes_by_raw_cursors(asked: Asked) -> None:
    """A cursor of the driver's own, and COPY, are seen like any other."""
    with asked.driver.cursor() as cursor:
        cursor.execute("UPDATE people SET name = 'raw'")
    assert asked.changed() == PEOPLE
    with asked.driver.cursor() as cursor, cursor.copy('COPY pages (id) FROM STDIN') as copy:
        copy.write_row((9,))
    assert asked.changed() == PEOPLE | PAGES


def test_savepoint_rolled_back(asked: Asked) -> None:
    """What was rolled back to a savepoint is no change, unless it was changed before."""
    asked.do("UPDATE people SET name = 'x'")
    asked.do('SAVEPOINT a', 'DELETE FROM pages')
    assert asked.changed() == PEOPLE | PAGES
    asked.do('ROLLBACK TO SAVEPOINT a')
    assert asked.changed() == PEOPLE


def test_deferred_constraint_trigger(asked: Asked) -> None:
    """What a trigger would change within COMMIT is known before it."""
    asked.do('INSERT INTO later VALUES (1)')
    assert asked.changed() == {'later'}
    assert asked.named(asked.last_changes().relations) == {'later', 'noted'}


def test_failed_transaction(asked: Asked) -> None:
    """A transaction that has failed can't be asked."""
    with pytest.raises(DBAPIError):
        asked.do('SELECT 1 / 0')
    with pytest.raises(DBAPIError):
        asked.inquiry.changes()


def test_ended_unseen(asked: Asked) -> None:
    """A transaction that is not the one that began is known by its marker."""
    assert asked.inquiry.changes().ended_unseen is None
    asked.driver.may_end = True
    asked.driver.pgconn.exec_(b'DELETE FROM pages; COMMIT; BEGIN')
    found = asked.inquiry.changes().ended_unseen
    assert found is not None
    assert 'another one begun' in found
    assert asked.inquiry.last_changes(is_unclear=False).ended_unseen == found


@pytest.mark.parametrize(
    'statement',
    [
        'SET LOCAL search_path = {other}',
        "SET LOCAL TimeZone = 'Asia/Tokyo'",
        "SET TimeZone = 'Asia/Tokyo'",
        "SELECT set_config('datestyle', 'German', true)",
        "SET LOCAL intervalstyle = 'iso_8601'",
        'SET LOCAL row_security = off',
        'SET LOCAL ROLE pg_monitor',
        'SET LOCAL SESSION AUTHORIZATION pg_monitor',
    ],
)
def test_strayed(asked: Asked, statement: str) -> None:
    """A search path, time zone, date style or role that was changed is noticed."""
    assert asked.inquiry.changes().strayed is None
    reads = asked.reads(lambda: asked.do(statement))
    assert reads.unknowable is not None
    assert 'was changed' in reads.unknowable
    assert not reads.wrote_nothing
    assert asked.inquiry.changes().strayed is not None


@pytest.mark.parametrize(
    'change', ["SET TimeZone = 'Asia/Tokyo'", "SET DateStyle = 'German'"]
)
def test_strayed_connection(
    manager: SessionManager, tenant: str, other: str, change: str
) -> None:
    """A setting that an earlier transaction has left on a connection is noticed at begin."""
    with open_scope(manager, tenant) as scope:
        connection = scope.session().connection()
        assert scope.listeners[-1].view is not None
        assert scope.listeners[-1].view.strayed is None
        connection.exec_driver_sql(change)
        scope.session().commit()
        scope.session().connection()
        assert scope.listeners[-1].view.strayed is not None


def test_answers_cost_nothing_of_the_transaction(asked: Any) -> None:
    """A question takes no id, and changes nothing that the next question would see."""
    asked.reads_of('SELECT * FROM people')
    for _ in range(2):
        answer = asked.inquiry.changes()
        assert (answer.transaction_id, answer.relations) == (None, frozenset())


@pytest.mark.parametrize(
    ('statement', 'read'),
    [
        ('SELECT * FROM people', {'people'}),
        ('SELECT * FROM people WHERE false', {'people'}),
        ('SELECT * FROM people JOIN pages USING (id)', {'people', 'pages'}),
        ('SELECT * FROM above', {'above', 'simple', 'people'}),
        ('SELECT * FROM counts', {'counts', 'people', 'pages'}),
        ('SELECT * FROM kept', {'kept'}),
        ('SELECT count_pages()', {'pages'}),
        ('SELECT careful()', {'pages'}),
        ('DO $$ BEGIN PERFORM count(*) FROM pages; END $$', {'pages'}),
        ('SELECT * FROM parts', {'parts', 'parts_1'}),
        ('SELECT * FROM loose', {'loose', 'heir'}),
        ('SELECT * FROM {tenant}.people', {'people'}),
        ('SELECT * FROM {other}.people', {'other.people'}),
        ('SELECT * FROM shared_by_asked.common', {'shared_by_asked.common'}),
        ('SAVEPOINT a; SELECT count(*) FROM pages; ROLLBACK TO SAVEPOINT a', {'pages'}),
        ('EXPLAIN ANALYZE SELECT * FROM people', {'people'}),
        ("COPY (SELECT id FROM people) TO PROGRAM 'cat > /dev/null'", {'people'}),
        ('DECLARE c CURSOR FOR SELECT * FROM people; FETCH ALL FROM c; CLOSE c', {'people'}),
    ],
)
def test_reads(asked: Asked, statement: str, read: set[str]) -> None:
    """All relations that a statement has read are known, within views and functions too."""
    assert asked.reads_of(statement) == read


@pytest.mark.parametrize('statement', ['SELECT * FROM people', 'SELECT * FROM counts'])
def test_reads_again(asked: Asked, statement: str) -> None:
    """What was read before is read again: the locks do not tell, the counters do."""
    asked.do(statement)
    assert asked.reads_of(statement) >= {'people'}
    assert asked.reads_of('SELECT 1') <= {'counts'}


def test_reads_of_a_parallel_query(asked: Asked) -> None:
    """What a parallel query reads is known, because it has no workers while it is watched."""
    for setting in ('min_parallel_table_scan_size', 'parallel_setup_cost', 'parallel_tuple_cost'):
        asked.do(f'SET LOCAL {setting} = 0')
    is_new = asked.driver.info.server_version >= 160_000
    asked.do(f'SET LOCAL {"debug_parallel_query" if is_new else "force_parallel_mode"} = on')
    asked.do('SELECT count(*) FROM pages')
    assert asked.reads_of('SELECT count(*) FROM pages') == {'pages'}


@pytest.mark.parametrize(
    ('statement', 'reason'),
    [
        ("UPDATE people SET name = 'x'", 'changed the database'),
        ('SELECT change_pages()', 'changed the database'),
        ('UPDATE people SET name = name WHERE false', 'changed the database'),
        ('SAVEPOINT a; DELETE FROM pages; ROLLBACK TO SAVEPOINT a', 'changed the database'),
        ('SELECT * FROM people FOR UPDATE', 'locked rows'),
        ('SELECT * FROM people FOR KEY SHARE', 'locked rows'),
        ('SELECT count(*) FROM pg_stat_activity', "PostgreSQL's own"),
        ('SELECT count(*) FROM information_schema.tables', "PostgreSQL's own"),
        ("SELECT nextval('numbers')", 'changed the database'),
        ('SELECT last_value FROM numbers', 'no part in transactions'),
        ('CREATE TEMPORARY TABLE t (id int); SELECT * FROM t', 'changed the database'),
        ('SELECT * FROM temporary', 'the temporary table'),
        ('SELECT lo_get(1)', "PostgreSQL's own"),
        ('SET LOCAL search_path = {other}; SELECT * FROM people', 'was changed'),
    ],
)
def test_unknowable_reads(asked: Asked, statement: str, reason: str) -> None:
    """What a value can't depend on is said, with the reason."""
    if 'temporary' in reason:
        asked.do('CREATE TEMPORARY TABLE temporary (id int)')
    if 'lo_get' in statement:
        asked.do("SELECT lo_from_bytea(1, 'x')")
    reads = asked.reads(lambda: asked.do(statement))
    assert reads.unknowable is not None
    assert reason in reads.unknowable


@pytest.mark.parametrize(
    'statement',
    ['SELECT count(*) FROM pg_stat_activity', 'SELECT last_value FROM numbers',
     'SELECT * FROM temporary'],
)  # fmt: skip
def test_unknowable_reads_again(asked: Asked, statement: str) -> None:
    """What has no counters is unknowable also if the transaction has read it before."""
    asked.do('CREATE TEMPORARY TABLE temporary (id int)', statement)
    assert asked.reads(lambda: asked.do(statement)).unknowable is not None


def test_reads_without_counters(asked: Asked) -> None:
    """Without track_counts, nothing can be known about reads."""
    asked.do('SET LOCAL track_counts = off')
    reads = asked.reads(lambda: asked.do('SELECT * FROM people'))
    assert reads.unknowable is not None
    assert 'track_counts' in reads.unknowable


def test_wrote_nothing(asked: Asked) -> None:
    """It is told whether the transaction has written anything at all."""
    assert asked.reads(lambda: asked.do('SELECT * FROM people')).wrote_nothing
    asked.do('DELETE FROM pages')
    assert not asked.reads(lambda: asked.do('SELECT * FROM people')).wrote_nothing
