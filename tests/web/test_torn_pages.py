"""Torn pages: a request whose values belong to different moments is tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from webtest import TestApp as Client

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache.errors import SnapshotConflict
from onegov_ormcache.steps import Step
from onegov_ormcache.tags.snapshot import UNREACHABLE
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import RedisCommands
from tests.support.models import Document, User
from tests.support.outside import until


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """Its values are numbers of rows, so a page shows which commits each value knows."""

    #: What the view answers: a function of the app and the number of the attempt.
    page: Callable[[Any, int], list[int]]
    attempts = 0

    @orm_cached(policy='on-table-change:users')
    def users(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy='on-table-change:users')
    def users_again(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy='auto')
    def users_auto(self) -> int:
        return self.session().query(User).count()

    @orm_cached(policy='on-table-change:documents')
    def documents(self) -> int:
        return self.session().query(Document).count()

    @orm_cached(policy='on-table-change:users,documents')
    def twice(self) -> list[int]:
        return [self.users, self.session().query(Document).count()]


App.path(path='')(Root)


@App.json(model=Root)
def read(self: Root, request: Any) -> list[int]:
    app_class = type(request.app)
    app_class.attempts += 1
    return app_class.page(request.app, app_class.attempts)


Page = Callable[[App, int], list[int]]


class Town:
    """An application in two processes, with a user and a document, and one page."""

    def __init__(self, applications: Applications, tenant: str) -> None:
        self._applications = applications
        self.tenant = tenant

    def start(self, page: Page, **settings: Any) -> None:
        self.app = self._applications.start(App, **settings)
        type(self.app).page = staticmethod(page)
        type(self.app).attempts = 0
        self.other = self._applications.again(type(self.app))
        self.client = Client(OrmCacheMiddleware(self.app, schema=self.tenant))
        change(self.app, self.tenant, a_user(), Document(title='a'))
        until(self.is_stored, 30)

    def is_stored(self) -> bool:
        """Return whether values can be stored: the quarantine is over."""
        value(self.app, self.tenant, lambda app: app.users)
        with self.app.recording() as events:
            value(self.app, self.tenant, lambda app: app.users)
        return events[0].tier != 'creator'

    def get(self) -> tuple[list[int], int]:
        """Return what the page shows, and the number of attempts that it took."""
        answer: list[int] = self.client.get('/').json
        return answer, type(self.app).attempts

    def commit(self) -> None:
        """Add a user and a document, in another process."""
        change(self.other, self.tenant, a_user(), Document(title='b'))


def a_user() -> User:
    """A user with a name of his own."""
    return User(name=uuid4().hex)


@pytest.fixture
def town(on_servers: Applications, tenant: str) -> Town:
    """A town that is yet to be started."""
    return Town(on_servers, tenant)


def changing(town: Town, *reads: str, attempts: int = 1) -> Page:
    """Return a page that reads properties; in its first attempts, another process commits
    before the last one is read."""

    def page(app: App, attempt: int) -> list[int]:
        values = [getattr(app, name) for name in reads[:-1]]
        if attempt <= attempts:
            town.commit()
        return [*values, getattr(app, reads[-1])]

    return page


@pytest.mark.parametrize('last', ['users_again', 'users_auto', 'documents'])
def test_computed_after_a_cached_value(town: Town, last: str) -> None:
    """A value that shows a commit is not beside a cached one that does not show it."""
    town.start(changing(town, 'users', last))
    assert town.get() == ([2, 2], 2)


def test_computed_after_a_computed_value(town: Town) -> None:
    """The same if the first value was computed, and stored."""
    town.start(changing(town, 'users_again', 'documents'))
    assert town.get() == ([2, 2], 2)


@pytest.mark.parametrize('last', ['documents', 'users'])
def test_cached_after_a_computed_value(town: Town, last: str) -> None:
    """A cached value that does not show a commit is not beside a computed one that shows it."""

    def page(app: App, attempt: int) -> list[int]:
        if attempt == 1:
            with before(Step.CREATOR, town.commit):
                return [app.users_again, getattr(app, last)]
        return [app.users_again, getattr(app, last)]

    town.start(page)
    value(town.app, town.tenant, lambda app: app.documents)
    assert town.get() == ([2, 2], 2)


def test_torn_within_a_value(town: Town) -> None:
    """A creator that reads another property and the database gives no torn value either."""

    def page(app: App, attempt: int) -> list[int]:
        if attempt == 1:
            with before(Step.PROCESS_TIER, lambda: None):
                app.users
            town.commit()
        return list(app.twice)

    town.start(page)
    assert town.get() == ([2, 2], 2)


def test_one_value_is_no_torn_page(town: Town) -> None:
    """A page of one value that could not be stored is not tried again."""

    def page(app: App, attempt: int) -> list[int]:
        with before(Step.FILL, town.commit):
            return [app.users_again]

    town.start(page)
    assert town.get()[1] == 1


def test_change_of_one_value_alone(town: Town) -> None:
    """If the commit concerns only the value that is computed, both belong to the moment after
    it."""

    def page(app: App, attempt: int) -> list[int]:
        users = app.users
        change(town.other, town.tenant, Document(title='b'))
        return [users, app.documents]

    town.start(page)
    assert town.get() == ([1, 2], 1)


@pytest.mark.parametrize(('attempts', 'made'), [(2, 2), (3, 3), (10, 3)])
def test_last_attempt_goes_on(town: Town, attempts: int, made: int) -> None:
    """If the table changes in every attempt, the last one, the third at most, answers with a
    torn page."""
    town.start(changing(town, 'users', 'documents', attempts=9), attempts=attempts)
    # the first value is that of the last attempt's snapshot
    assert town.get() == ([made, made + 1], made)


@pytest.mark.parametrize('settings', [{'check_torn_pages': False}, {'attempts': 1}])
def test_check_is_off(town: Town, settings: dict[str, Any]) -> None:
    """Without the check, or with one attempt, a torn page is no error."""
    town.start(changing(town, 'users', 'documents'), **settings)
    assert town.get() == ([1, 2], 1)


def test_scope_without_a_tween_goes_on(town: Town) -> None:
    """A script gets the torn values, because nobody would run it again."""
    page = changing(town, 'users', 'documents')
    town.start(page)
    assert value(town.app, town.tenant, lambda app: page(app, 1)) == [1, 2]


@pytest.mark.parametrize('level', ['REPEATABLE READ', 'SERIALIZABLE'])
def test_view_that_lasts(town: Town, level: str) -> None:
    """Under a view that lasts, all values show the view, and no attempt is lost."""

    def page(app: App, attempt: int) -> list[int]:
        app.session().execute(text('SELECT 1'))
        return changing(town, 'users', 'documents')(app, attempt)

    town.start(page, engine_options={'isolation_level': level})
    assert town.get() == ([1, 1], 1)


def test_doubt_that_lasts(town: Town) -> None:
    """A writer that is about to commit, and has not, tears no page."""

    def page(app: App, attempt: int) -> list[int]:
        return [app.users, app.documents]

    town.start(page)
    with town.other.request_scope(town.tenant) as scope:
        scope.session().add_all([a_user(), Document(title='b')])
        with before(Step.COMMIT, lambda: found.append(town.get())):
            found: list[Any] = []
            scope.session().commit()
    assert found == [([1, 1], 1)]


def test_committed_but_not_published(town: Town) -> None:
    """A commit whose writer has died before it was published tears no page either."""

    def page(app: App, attempt: int) -> list[int]:
        users = app.users
        if attempt == 1:
            commit_and_die()
        return [users, app.documents]

    def commit_and_die() -> None:
        scope = town.other.open_scope(town.tenant, create=False)
        with scope.active(), before(Step.PUBLISH, die), pytest.raises(Died):
            scope.session().add_all([a_user(), Document(title='b')])
            scope.session().commit()

    town.start(page)
    answer, attempts = town.get()
    assert answer == [2, 2]
    assert attempts > 1


def test_new_birth(town: Town) -> None:
    """If the tag store forgets what has changed, a page is tried again."""

    def page(app: App, attempt: int) -> list[int]:
        users = app.users
        if attempt == 1:
            town.commit()
            app.orm_cache.tags.renew(town.tenant)
        return [users, app.documents]

    town.start(page)
    assert town.get() == ([2, 2], 2)


def test_unreachable_store(town: Town) -> None:
    """If nobody can say what has changed, the page is answered."""

    def page(app: App, attempt: int) -> list[int]:
        users = app.users
        town.commit()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(app.orm_cache), 'snapshot', lambda *_: UNREACHABLE)
            return [users, app.documents]

    town.start(page)
    assert town.get() == ([1, 2], 1)


def test_look_at_the_versions_only_when_needed(
    town: Town, redis_commands: Callable[[], RedisCommands]
) -> None:
    """A page whose values could be stored costs no command for this check; one with an own
    change costs one for each value that was computed after another."""

    def page(app: App, attempt: int) -> list[int]:
        if own:
            app.session().add(a_user())
        return [app.documents, app.users, app.users_again]

    own: list[bool] = []
    counts = []
    for switch in True, False:
        town.start(page, check_torn_pages=switch)
        town.get()
        with redis_commands() as seen:
            town.get()
        counts.append(seen.count)
        own.append(True)
        with redis_commands() as seen:
            town.get()
        counts.append(seen.count)
        own.clear()
        for app in town.app, town.other:
            app.close_orm_cache()
    warm, changing_on, same_warm, changing_off = counts
    assert (warm, same_warm) == (1, 1)
    assert changing_on - changing_off == 2


def test_the_conflict_says_what_is_wrong(town: Town) -> None:
    """The error names tenant and tag."""

    def page(app: App, attempt: int) -> list[int]:
        users = app.users
        if attempt == 1:
            town.commit()
            with pytest.raises(SnapshotConflict, match=f'{town.tenant}: table:users changed'):
                app.documents
        return [users]

    town.start(page)
    town.get()
    with committed(town.app, town.tenant) as scope:
        assert scope.torn_pages.are_refused is False
