"""The analyzer takes any text without an error, and parses a repeated text once.

What a text touches is in test_sql_texts.py, and what SQLAlchemy makes in
test_sqlalchemy_statements.py.
"""

from __future__ import annotations

import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegov_ormcache.database.statements import Statement, StatementAnalyzer
from tests.database.analysis import POSTGRESQL, SQLITE, Parsers, analyzed, touching


def test_unknown_dialect() -> None:
    """A database that is not supported is refused at once, by name."""
    with pytest.raises(ValueError, match='mysql'):
        StatementAnalyzer('mysql')


@pytest.mark.parametrize(
    'sql',
    [
        'SELECT * FROM users WHERE id IN (__[POSTCOMPILE_id_1]) AND name = %(name)s::VARCHAR',
        "SELECT * FROM users WHERE lower(name) LIKE '%%x%%' ESCAPE '/' AND id %% %(id)s = 1",
        "SELECT '%(a)s' FROM users WHERE x IN (__[POSTCOMPILE_x~~f(~~REPL~~)~~]) LIMIT %s",
        'SELECT * FROM users WHERE (a, b) IN ((%s, %s), (%s, %s)) AND c = $1::VARCHAR',
        'SELECT * FROM __[SCHEMA__none].users WHERE id = ANY(%(ids)s::INTEGER[])',
    ],
)
def test_placeholders(sql: str) -> None:
    """Placeholders of SQLAlchemy and of drivers are none of SQL's syntax."""
    assert analyzed(POSTGRESQL, sql) == touching('users')


def test_schema_translate_map_keeps_the_schema_of_the_metadata() -> None:
    """Schemas that are only known at execution are named as the metadata does."""
    found = analyzed(POSTGRESQL, 'SELECT 1 FROM __[SCHEMA_Town].users, __[SCHEMA__none].groups')
    assert found == touching('Town.users groups')


def test_sqlite_compares_names_without_case() -> None:
    """SQLite's names are given as the application knows them, PostgreSQL's as quoted."""
    tables = {'Users', 'town.Pages'}
    sql = 'SELECT 1 FROM USERS, "uSERS", town.PAGES, Other'
    lite, postgres = (StatementAnalyzer(name, tables) for name in (SQLITE, POSTGRESQL))
    assert lite.analyze(sql, None) == touching('Users town.Pages other')
    assert postgres.analyze(sql, None) == touching('users uSERS town.pages other')


def test_many_rows_are_parsed_once() -> None:
    """A multi-row INSERT with placeholders is as short as one of a single row."""
    rows = ', '.join(f'(%(a_m{i})s::VARCHAR, %(b_m{i})s)' for i in range(50_000))
    found = analyzed(POSTGRESQL, f"INSERT INTO users (a, b) VALUES {rows} RETURNING 'x(), ()'")
    assert found == touching('', 'users')


def test_rows_in_literals_are_left_alone() -> None:
    """Rows that begin or end a literal are none: to drop one would move the literal's end."""
    sql = "SELECT (a, '), (a, '), ('; DELETE FROM users; --')"
    assert analyzed(SQLITE, sql) == touching()


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """sqlglot's warnings are silent during an analysis and heard after it."""
    logger = logging.getLogger('sqlglot')
    assert analyzed(POSTGRESQL, 'WITH x AS (DO $$ a $$) SELECT 1').unknown
    assert not caplog.records
    assert not logger.filters
    logger.warning('heard')
    assert caplog.messages == ['heard']


@given(sql=st.text(max_size=200), dialect=st.sampled_from([POSTGRESQL, SQLITE]))
def test_arbitrary_text_never_raises(sql: str, dialect: str) -> None:
    """Whatever is executed, the analysis gives an answer."""
    assert isinstance(analyzed(dialect, sql), Statement)


WORDS = str.split(
    'SELECT INSERT INTO UPDATE SET DELETE FROM WHERE WITH AS RECURSIVE JOIN ON USING VALUES '
    'MERGE WHEN MATCHED THEN COPY TO DO CONFLICT CREATE DROP ALTER TRUNCATE TABLE EXPLAIN '
    'REPLACE DECLARE REFRESH FOR IN OR NOT RENAME UNION ( ) , ; . * = a b "C" f( \'x\' 1 ? -- /*'
)


@given(
    words=st.lists(st.sampled_from(WORDS), max_size=25),
    dialect=st.sampled_from([POSTGRESQL, SQLITE]),
)
def test_arbitrary_words_of_sql_never_raise(words: list[str], dialect: str) -> None:
    """Nor does what is almost SQL."""
    assert isinstance(analyzed(dialect, ' '.join(words)), Statement)


def test_texts_are_parsed_once_unless_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts are remembered, those over 10,000 characters are not."""
    analyzer = StatementAnalyzer(SQLITE)
    parsers = Parsers(analyzer, monkeypatch)
    short, long = 'SELECT * FROM users', f'SELECT * FROM users -- {"x" * 10_000}'
    assert {analyzer.analyze(short, None) for _ in range(3)} == {touching('users')}
    assert parsers.count == 1
    assert {analyzer.analyze(long, None) for _ in range(3)} == {touching('users')}
    assert parsers.count == 4


def test_threads_share_an_analyzer() -> None:
    """Threads that analyze at the same time get the same right answers."""
    analyzer = StatementAnalyzer(POSTGRESQL)
    wrong: list[Statement] = []

    def work() -> None:
        for i in range(100):
            found = analyzer.analyze(f'DELETE FROM t{i} USING u{i}', None)
            if found != touching(f'u{i}', f't{i}', f't{i}'):
                wrong.append(found)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
