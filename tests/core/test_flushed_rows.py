"""The rows of the objects that a flush has written are evicted, and few others."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import Document, User

#: Users whose ids are in buckets of their own.
USERS = [1, 2, 3, 4]
#: As many users have ids in more buckets than one transaction may change.
MANY = 200


class App(OrmCacheApp):
    runs: Runs

    @orm_cached(policy=[rows(Document.owner_id), rows(User.id)])
    def documents(self, owner_id: int) -> int:
        self.runs(str(owner_id))
        query = select(func.count()).where(Document.owner_id == owner_id)
        return int(self.session().scalar(query) or 0)


@pytest.fixture
def app(applications: Applications, tenant: str, runs: Runs) -> App:
    """An application with a document of each user, whose values are cached."""
    app: App = applications.start(App)
    app.runs = runs
    users = [User(id=id, name=f'User {id}') for id in range(1, MANY + 1)]
    documents = [Document(id=id, kind='document', title='t', owner_id=id) for id in USERS]
    change(app, tenant, *users)
    change(app, tenant, *documents)
    assert read(app, tenant) == dict.fromkeys(USERS, 1)
    return app


def read(app: App, tenant: str) -> dict[int, int]:
    found: dict[int, int] = value(app, tenant, lambda app: app.documents.many(USERS))
    return found


def runs_again(app: App, tenant: str) -> set[int]:
    """Read all values; return the users of those whose creators ran again."""
    before = {id: app.runs.count(str(id)) for id in USERS}
    read(app, tenant)
    return {id for id in USERS if app.runs.count(str(id)) > before[id]}


def test_a_moved_row(app: App, tenant: str) -> None:
    """A row that another user gets concerns the old user and the new one."""
    with committed(app, tenant) as scope:
        scope.session().get_one(Document, 1).owner_id = 2
    assert runs_again(app, tenant) == {1, 2}
    assert read(app, tenant) == {1: 0, 2: 2, 3: 1, 4: 1}


def test_a_row_that_stays(app: App, tenant: str) -> None:
    """A change of another column concerns the user of the row."""
    with committed(app, tenant) as scope:
        scope.session().get_one(Document, 3).title = 'new'
    assert runs_again(app, tenant) == {3}


def test_a_deleted_row(app: App, tenant: str) -> None:
    """A deleted row concerns the user that it had, also if it was given another one before."""
    with committed(app, tenant) as scope:
        document = scope.session().get_one(Document, 4)
        document.owner_id = 3
        scope.session().delete(document)
    assert 4 in runs_again(app, tenant)
    assert read(app, tenant) == {1: 1, 2: 1, 3: 1, 4: 0}


def test_rows_of_many_buckets(app: App, tenant: str) -> None:
    """Objects in more buckets than a transaction may change concern all rows."""
    with committed(app, tenant) as scope:
        for user in scope.session().scalars(select(User).where(User.id > max(USERS))):
            user.name += '!'
    assert runs_again(app, tenant) == set(USERS)
