"""A change evicts the properties whose policy, or whose dependencies, it concerns; the audit
finds a policy that leaves out a table.
"""

from __future__ import annotations

from typing import Any

import pytest

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache.errors import AuditError
from onegov_ormcache.testing import assert_evicted_by, assert_not_evicted
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.creators import user_count
from tests.support.models import Document, Group, Letter, User

POLICIES: dict[str, Any] = {
    'table': 'on-table-change:users',
    'tables': 'on-table-change:groups, users',
    'class': User,
    'Table': User.__table__,
    'function': lambda obj: isinstance(obj, User),
    'auto': 'auto',
    'list': ['on-table-change:groups', User],
    'list with a Table': [Group, User.__table__],
    'list of lists': [['on-table-change:groups'], [lambda obj: isinstance(obj, User)]],
}


@pytest.mark.parametrize('kind', POLICIES)
def test_policies_of_all_kinds(
    applications: Applications, tenant: str, runs: Runs, kind: str
) -> None:
    """Every kind of policy evicts by a change of its table and not by one of another."""

    class App(OrmCacheApp):
        @orm_cached(policy=POLICIES[kind])
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = applications.start(App)
    other = applications.elsewhere(app)
    assert value(app, tenant, lambda app: app.count) == 0
    assert value(other, tenant, lambda app: app.count) == 0
    with assert_not_evicted(other, 'count', schema=tenant):
        change(app, tenant, Document(kind='document', title='unrelated'))
    assert value(other, tenant, lambda app: app.count) == 0
    assert runs.count('count') == 1
    with assert_evicted_by(other, 'count', schema=tenant):
        change(app, tenant, User(name='a'))
    assert value(other, tenant, lambda app: app.count) == 1
    assert value(app, tenant, lambda app: app.count) == 1
    assert runs.count('count') == 2


def test_policy_of_an_inherited_class(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A mapped class stands for the tables it inherits, too."""

    class App(OrmCacheApp):
        @orm_cached(policy=Letter)
        def letters(self) -> Any:
            runs('letters')
            return self.session().query(Letter.title)

    app = applications.start(App)
    change(app, tenant, Letter(title='a', address='here'))
    value(app, tenant, lambda app: app.letters)
    with committed(app, tenant) as scope:
        scope.session().query(Letter).one().title = 'b'
    assert value(app, tenant, lambda app: [row.title for row in app.letters]) == ['b']


def test_dependencies_are_inherited(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A property is evicted together with the properties that its creator reads, at any depth."""

    class App(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def users(self) -> int:
            return user_count(self)

        @request_cached
        def groups(self) -> int:
            return int(self.session().query(Group).count())

        @orm_cached(policy='on-table-change:documents')
        def both(self) -> Any:
            return [self.users, self.groups]

        @orm_cached(policy='auto')
        def all(self) -> Any:
            runs('all')
            return [*self.both, self.session().query(Letter).count()]

    app = applications.start(App)
    other = applications.elsewhere(app)
    assert value(app, tenant, lambda app: app.all) == [0, 0, 0]
    assert value(other, tenant, lambda app: app.all) == [0, 0, 0]
    assert runs.count('all') == 1
    change(app, tenant, User(name='a'))
    assert value(other, tenant, lambda app: app.all) == [1, 0, 0]
    change(app, tenant, Group(name='a'))
    assert value(other, tenant, lambda app: app.all) == [1, 1, 0]
    change(app, tenant, Letter(title='a', address='b'))
    assert value(other, tenant, lambda app: app.all) == [1, 1, 1]


@pytest.mark.parametrize('audit', ['off', 'warn', 'error'])
def test_audit_of_policies(
    applications: Applications, tenant: str, caplog: Any, audit: str
) -> None:
    """A creator that reads a table which its policy does not mention is logged by name, or
    refused with an error; a creator whose policy is right is neither."""

    class App(OrmCacheApp):
        @orm_cached(policy=[User.__table__])
        def wrong(self) -> Any:
            return [self.session().query(User).count(), self.session().query(Group).count()]

        @orm_cached(policy='on-table-change:users, groups')
        def right(self) -> Any:
            return [self.session().query(User).count(), self.session().query(Group).count()]

        @orm_cached(policy=lambda obj: isinstance(obj, (User, Group)))
        def by_function(self) -> Any:
            return self.right

    app = applications.start(App, audit=audit)
    for _ in range(2):
        assert value(app, tenant, lambda app: (app.right, app.by_function)) == ([0, 0], [0, 0])
        if audit == 'error':
            with pytest.raises(AuditError, match=r'App\.wrong read groups.*\[Table users\]'):
                value(app, tenant, lambda app: app.wrong)
        else:
            assert value(app, tenant, lambda app: app.wrong) == [0, 0]
        change(app, tenant, User(name=str(_)))
        with committed(app, tenant) as scope:
            scope.session().query(User).delete()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (1 if audit == 'warn' else 0)
    assert all('App.wrong read groups' in message for message in messages)
