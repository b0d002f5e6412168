"""Triggers that tell rows let a change evict only the values that depend on the changed rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import text

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from onegov_ormcache.core.outside_reports import MAX_REPORTS, OutsideReports
from tests.core.listening.listening_town import PROMISED, Program, listening
from tests.support.applications import Applications, change, committed
from tests.support.counting import Runs
from tests.support.models import Document, User
from tests.support.outside import install, until

FUNCTION = """
CREATE FUNCTION rename(which integer) RETURNS integer LANGUAGE sql AS
$$ UPDATE users SET name = 'renamed' WHERE id = which; SELECT 1 $$
"""


class Town(OrmCacheApp):
    """Users by their ids, and how many documents they own."""

    runs: Runs

    @orm_cached(policy=rows(User.id))
    def user(self, id: int) -> str | None:
        self.runs(f'user {id}')
        return self.session().query(User.name).filter_by(id=id).scalar()

    @orm_cached(policy=rows(Document.owner_id))
    def documents(self, owner_id: int) -> int:
        self.runs(f'documents {owner_id}')
        return self.session().query(Document).filter_by(owner_id=owner_id).count()


#: Of which columns the triggers tell the values.
TOLD = {'users': ['id'], 'documents': ['owner_id']}


@pytest.fixture
def town(apps: Applications, tenant: str, postgres_dsn: str) -> Any:
    """An app that does not listen; its tenant has triggers that tell rows."""
    app = apps.start(Town)
    Town.runs = app.runs = Runs()
    change(app, tenant, User(id=2, name='Grace'), User(id=3, name='Edsger'))
    install(postgres_dsn, tenant, rows=TOLD)
    return app


def read(app: Any, schema: str) -> list[Any]:
    with app.request_scope(schema):
        return [*map(app.user, (1, 2, 3)), *map(app.documents, (1, 2, 3))]


@contextmanager
def computing(app: Any, schema: str, expected: set[str]) -> Iterator[None]:
    """Assert which values are computed again after the block; they were cached before."""
    for _ in range(2):
        read(app, schema)
    before = {name: app.runs.count(name) for name in USERS | DOCUMENTS}
    yield
    read(app, schema)
    assert {name for name in before if app.runs.count(name) > before[name]} == expected


USERS = {'user 1', 'user 2', 'user 3'}
DOCUMENTS = {'documents 1', 'documents 2', 'documents 3'}

CHANGES = {
    'update': ("UPDATE users SET name = 'renamed' WHERE id = 2", {'user 2'}),
    'key': ('UPDATE documents SET owner_id = 3', {'documents 1', 'documents 3'}),
    'insert': ("INSERT INTO users (id, name) VALUES (4, 'Alan')", set()),
    'cascade': ('DELETE FROM users WHERE id = 1', {'user 1', 'documents 1'}),
    'nothing': ("UPDATE users SET name = 'renamed' WHERE id > 3", set()),
    'function': ('SELECT rename(3)', {'user 3'}),
    'truncate': ('TRUNCATE users CASCADE', USERS | DOCUMENTS),
    'many': ("INSERT INTO users SELECT n, 'u' || n FROM generate_series(11, 99) n", USERS),
}


@pytest.mark.parametrize('kind', CHANGES)
def test_own_statements_that_are_not_understood(
    town: Any, program: Program, tenant: str, kind: str
) -> None:
    """A text of a transaction of the package evicts the values of the rows that it changes."""
    program.execute(FUNCTION)
    statement, expected = CHANGES[kind]
    with computing(town, tenant, expected), committed(town, tenant) as scope:
        scope.session().execute(text(statement))


@pytest.mark.parametrize('kind', CHANGES)
def test_outside_statements(
    town: Any, apps: Applications, program: Program, tenant: str, kind: str
) -> None:
    """A statement of another program evicts, while an application listens, the values of the rows
    that it changes."""
    program.execute(FUNCTION)
    app: Any = listening(apps.start(Town, listen=True))
    statement, expected = CHANGES[kind]
    with computing(app, tenant, expected):
        program.execute(statement)
        heard(app, tenant, program)


def heard(app: Any, tenant: str, program: Program) -> None:
    """Wait until an application has evicted all that was changed so far."""
    with app.request_scope(tenant) as scope:
        before = scope.snapshot().stamp({'table:groups'})
    program.execute("INSERT INTO groups (id, name) VALUES (99, 'marker')")

    def has_changed() -> bool:
        with app.request_scope(tenant) as scope:
            return bool(scope.snapshot().stamp({'table:groups'}) != before)

    until(has_changed, PROMISED)


@pytest.mark.parametrize('told', [{'users': []}, {'users': ['name']}])
def test_triggers_that_tell_other_columns(
    town: Any, tenant: str, postgres_dsn: str, told: dict[str, list[str]]
) -> None:
    """If the triggers do not tell what a policy names, all rows may have changed."""
    install(postgres_dsn, tenant, rows=told)
    with computing(town, tenant, USERS), committed(town, tenant) as scope:
        scope.session().execute(text("UPDATE users SET name = 'renamed' WHERE id = 2"))


def test_child_that_has_no_triggers(
    town: Any, program: Program, tenant: str, postgres_dsn: str
) -> None:
    """A statement on a child of a table shows in the table, and the triggers of the table do not
    see it: all its rows may have changed, whatever they tell of others."""
    program.execute('CREATE TABLE guests () INHERITS (users)')
    program.execute("INSERT INTO guests (id, name) VALUES (7, 'guest')")
    with computing(town, tenant, USERS), committed(town, tenant) as scope:
        scope.session().execute(text("UPDATE users SET name = 'renamed' WHERE id = 2"))
        scope.session().execute(text('UPDATE guests SET id = 8'))


# what a listener hears


def rows_of(transaction: str, *values: str) -> str:
    told = f'[{", ".join(f"{chr(34)}{value}{chr(34)}" for value in values)}]'
    return f'{{"table": "s:t", "transaction": "{transaction}", "rows": {{"id": {told}}}}}'


def reported(*payloads: str) -> Any:
    """Return what is reported of a table after these notifications."""
    reports = OutsideReports()
    for payload in payloads:
        (reports.hear_rows if payload.startswith('{') else reports.hear_table)(payload)
    found = reports.take()
    assert reports.take() == {}
    rows = found['s', 't']
    return rows and [set(each['id']) for each in rows]


@pytest.mark.parametrize(
    ('payloads', 'expected'),
    [
        (['s:t'], None),
        ([rows_of('1', '7'), 's:t'], [{'7'}]),
        ([rows_of('1', '7'), 's:t', rows_of('1', '7', '8')], [{'7'}, {'7', '8'}]),
        ([rows_of('1', '7'), 's:t', rows_of('2', '8'), 's:t'], [{'7'}, {'8'}]),
        ([rows_of('1', '7'), 's:t', 's:t'], None),
        ([rows_of('1', '7'), 's:t', rows_of('1', '8'), 's:t'], None),
        (['s:t', rows_of('1', '7'), 's:t'], None),
        ([rows_of('1', '7')] * (MAX_REPORTS + 1), None),
    ],
)
def test_names_that_follow_rows(payloads: list[str], expected: Any) -> None:
    """The name of a table tells no more than the first rows of its transaction, which come before
    it; any other tells that all rows may have changed. So do too many rows."""
    assert reported(*payloads) == expected


def test_reports_that_are_given_back() -> None:
    """What could not be evicted is reported again, with what was heard since."""
    reports = OutsideReports()
    reports.hear_rows(rows_of('1', '7'))
    first = reports.take()
    reports.hear_rows(rows_of('2', '8'))
    reports.give_back(first)
    assert sorted(str(sorted(each['id'])) for each in reports.take()['s', 't'] or ()) == [
        "['7']", "['8']",
    ]  # fmt: skip
    reports.hear_table('s:t')
    reports.hear_table('s:t')
    reports.give_back(first)
    assert reports.take() == {('s', 't'): None}


@pytest.mark.parametrize('payload', ['', '[]', '{}', '{"table": "s:t"}', '{"table": 1}', 'null'])
def test_rows_that_nobody_has_told(payload: str) -> None:
    """What no trigger of the package has sent is an error."""
    with pytest.raises(ValueError, match=r'.'):
        OutsideReports().hear_rows(payload)
