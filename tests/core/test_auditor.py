"""The auditor: finds values that are not what the database gives, and accuses no others."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from time import monotonic
from typing import Any, NamedTuple

import pytest
from sqlalchemy import create_engine, delete, select, update
from sqlalchemy.orm import sessionmaker

from onegov_ormcache import OrmCache, OrmCacheApp, observe, orm_cached, request_cached, rows
from onegov_ormcache.core.auditor import MAX_HITS
from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.statistics.results import PropertyStatistics
from tests.support.applications import Applications, change, committed, value
from tests.support.models import Base, Group, User


class Identity(NamedTuple):
    """The identity of the user who reads."""

    role: str


class App(OrmCacheApp):
    """Its properties read the names of users; some of their policies are wrong."""

    #: Called by creators before they read.
    first: Callable[[], object] = staticmethod(lambda: None)
    identity = Identity('member')

    def names(self) -> list[str]:
        type(self).first()
        return list(self.session().scalars(select(User.name).order_by(User.name)))

    @orm_cached(policy=User)
    def right(self) -> list[str]:
        return self.names()

    @orm_cached(policy=Group)
    def wrong(self) -> list[str]:
        return self.names()

    @orm_cached(policy=rows(Group.id))
    def wrong_of(self, id: int) -> list[Any]:
        self.session().get(Group, id)
        return [id, self.names()]

    @orm_cached(policy=Group)
    def of_wrong(self) -> int:
        return len(self.wrong)

    @orm_cached(policy=User)
    def shapes(self) -> Any:
        names = self.names()
        random.shuffle(names)
        shuffled = {name: {'names': set(names)} for name in names}
        return shuffled, frozenset(names), [float('nan')]

    @orm_cached(policy=User)
    def in_no_order(self) -> list[str]:
        names = self.names()
        random.shuffle(names)
        return names

    @orm_cached(policy=User, by_role=True)
    def by_role(self) -> list[Any]:
        return [self.identity.role, self.names()]

    @orm_cached(policy=Group, expires=3600)
    def for_an_hour(self) -> list[str]:
        return self.names()

    @orm_cached(policy=Group)
    def of_an_hour(self) -> list[str]:
        return list(self.for_an_hour)

    @request_cached
    def kept(self) -> list[str]:
        return self.names()


#: Enough names that a shuffled list is another one.
NAMES = [f'user {number:02}' for number in range(30)]


@pytest.fixture
def make(
    applications: Applications, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., App]:
    """Makes an app with users that audits each hit, unless a setting says otherwise."""
    monkeypatch.setattr(App, 'first', staticmethod(lambda: None))
    monkeypatch.setattr(App, 'identity', Identity('member'))

    def make(**settings: Any) -> App:
        app = applications.start(App, **{'check_hits': 1, 'audit': 'off', **settings})
        change(app, tenant, *map(named, NAMES), Group(id=1, name='a'))
        with app.request_scope(tenant) as scope:
            scope.session().connection()  # the quarantine has ended
        return app

    return make


@pytest.fixture
def app(make: Callable[..., App]) -> App:
    """An app that audits each hit."""
    return make()


def named(name: str) -> User:
    """Return a user."""
    return User(name=name)


def numbers(app: App, name: str) -> PropertyStatistics:
    """Return what was counted of a property, by all processes."""
    statistics = app.orm_cache.statistics
    [properties] = [statistics.of(tenant).properties for tenant in statistics.tenants()]
    return properties.get(f'{App.__module__}.App.{name}', PropertyStatistics())


def counts(app: App, name: str) -> dict[str, int]:
    """Return what was found about a property."""
    return dict(numbers(app, name).audits)


def remove_one(app: App, tenant: str) -> None:
    """Remove a user."""
    with committed(app, tenant) as scope:
        scope.session().execute(delete(User).where(User.name == NAMES[0]))


READS: dict[str, Callable[[App], Any]] = {
    'wrong': lambda app: app.wrong,
    'wrong_of': lambda app: app.wrong_of(1),
    'of_wrong': lambda app: app.of_wrong,
}


@pytest.mark.parametrize('name', READS)
def test_wrong_policy_is_found(
    app: App, tenant: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A hit that is not what the database gives is counted each time, and logged once, without
    the value. So is one that was made of such a value."""
    before = value(app, tenant, READS[name])
    assert value(app, tenant, READS[name]) == before
    assert counts(app, name) == {'agreed': 1}
    remove_one(app, tenant)
    for _ in range(3):
        assert value(app, tenant, READS[name]) == before  # which is stale
    assert counts(app, name) == {'agreed': 1, 'disagreed': 3}
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.name == 'onegov_ormcache.core.auditor'
    message = record.getMessage()
    assert f'App.{name} of {tenant}' in message
    assert repr(f':{App.__module__}.App.{name}')[:-1] in message
    assert 'user' not in message


@pytest.mark.parametrize('name', ['right', 'shapes', 'by_role'])
def test_right_values_agree(app: App, tenant: str, name: str) -> None:
    """Values that are what the database gives are no disagreements, whatever the order of their
    sets and dicts. Changes that they depend on are seen."""
    for number in range(3):
        for _ in range(4):
            value(app, tenant, lambda app: getattr(app, name))
        change(app, tenant, User(name=f'another {number}'))
    assert counts(app, name) == {'agreed': 9}
    assert numbers(app, name).checks == 9
    assert numbers(app, name).disagreement_bound == pytest.approx(1 - 0.05 ** (1 / 9))


def test_order_is_told_apart(app: App, tenant: str, caplog: pytest.LogCaptureFixture) -> None:
    """A list of the same items in another order is counted apart, and logged once."""
    for _ in range(4):
        value(app, tenant, lambda app: app.in_no_order)
    assert counts(app, 'in_no_order') == {'reordered': 3}
    assert caplog.text.count('ORDER BY') == 1


def test_changed_since(app: App, tenant: str) -> None:
    """A hit whose tags were changed before it was recomputed is not judged."""
    value(app, tenant, lambda app: app.right)
    with app.request_scope(tenant) as scope:
        assert app.right == NAMES
        scope.session().execute(delete(User).where(User.name == NAMES[0]))
        scope.commit()
    assert counts(app, 'right') == {'untold': 1}


def test_changed_while_it_is_recomputed(
    on_servers: Applications, make: Callable[..., App], tenant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A hit whose tags change while it is recomputed is not judged: the recomputation may show the
    change."""
    app = make()
    if app.orm_cache.tags.single_process:
        pytest.skip('SQLite does not let another transaction commit meanwhile')
    value(app, tenant, lambda app: app.right)

    def remove() -> None:
        monkeypatch.setattr(App, 'first', staticmethod(lambda: None))
        with ThreadPoolExecutor(1) as pool:
            pool.submit(remove_one, app, tenant).result()

    with app.request_scope(tenant):
        assert app.right == NAMES
        monkeypatch.setattr(App, 'first', staticmethod(remove))
    assert counts(app, 'right') == {'untold': 1}


def test_another_role(app: App, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hit is not judged if the instance would ask for another value by now."""
    value(app, tenant, lambda app: app.by_role)
    with app.request_scope(tenant):
        assert app.by_role == ['member', NAMES]
        monkeypatch.setattr(App, 'identity', Identity('editor'))
    assert counts(app, 'by_role') == {'untold': 1}


def test_values_that_expire(app: App, tenant: str) -> None:
    """Values with `expires` may depend on the time, and so may those that are made of one."""
    for _ in range(3):
        value(app, tenant, lambda app: (app.for_an_hour, app.of_an_hour))
        remove_one(app, tenant)
    assert counts(app, 'for_an_hour') == {}
    assert counts(app, 'of_an_hour') == {'untold': 2}


def test_not_part_of_the_statistics(
    app: App, tenant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The runs of the auditor are no runs, misses or bypasses of the cache, and no part of the
    story of a request."""
    caplog.set_level(logging.DEBUG, 'onegov_ormcache')
    value(app, tenant, lambda app: app.of_wrong)
    before = numbers(app, 'of_wrong'), numbers(app, 'wrong')
    value(app, tenant, lambda app: app.of_wrong)
    after = numbers(app, 'of_wrong'), numbers(app, 'wrong')
    assert after[1] == before[1]
    assert 'outage' not in caplog.text
    assert after[0] == replace(
        before[0], process_hits=before[0].process_hits + 1, audits={'agreed': 1}
    )


def test_other_reads(app: App, tenant: str) -> None:
    """Hits of the request tier, request-cached values and `many` are not audited, and neither is
    what a creator reads."""
    value(app, tenant, lambda app: app.wrong)
    value(app, tenant, lambda app: (app.of_wrong, app.wrong_of(1)))
    assert counts(app, 'wrong') == {}
    value(app, tenant, lambda app: (app.kept, app.kept, app.wrong_of.many([1])))
    value(app, tenant, lambda app: (app.of_wrong, app.of_wrong))
    assert counts(app, 'wrong') == counts(app, 'wrong_of') == counts(app, 'kept') == {}
    assert counts(app, 'of_wrong') == {'agreed': 1}


def test_errors_stay_inside(
    app: App, tenant: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of a recomputation is counted and logged without its text, and nobody else hears
    of it."""
    value(app, tenant, lambda app: app.right)

    def fail() -> None:
        raise ValueError('the secret')

    with app.request_scope(tenant):
        assert app.right == NAMES
        monkeypatch.setattr(App, 'first', staticmethod(fail))
    assert counts(app, 'right') == {'failed': 1}
    assert 'could not be recomputed, to check a hit: ValueError' in caplog.text
    assert 'the secret' not in caplog.text
    assert value(app, tenant, lambda app: app.right) == NAMES


def test_nothing_is_written(app: App, tenant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a creator writes when it is recomputed is rolled back, and evicts nothing."""
    value(app, tenant, lambda app: app.right)

    def write() -> None:
        app.session().execute(update(User).values(name=User.name + '!'))

    with app.request_scope(tenant):
        assert app.right == NAMES
        monkeypatch.setattr(App, 'first', staticmethod(write))
    assert counts(app, 'right') == {'disagreed': 1}
    monkeypatch.setattr(App, 'first', staticmethod(lambda: None))
    with app.recording() as events:
        assert value(app, tenant, lambda app: app.right) == NAMES
    assert [event.tier for event in events] == ['process']


def test_the_only_connection_of_a_pool(make: Callable[..., App], tenant: str) -> None:
    """A recomputation has the connection that its request has given back."""
    app = make(engine_options={'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 1})
    for _ in range(3):
        with app.request_scope(tenant) as scope:
            scope.session().connection()
            assert app.right == NAMES
    assert counts(app, 'right') == {'agreed': 2}


def test_within_a_transaction(make: Callable[..., App], tenant: str) -> None:
    """The hits of a scope within another one that is in a transaction are not recomputed: it has
    the connection, and maybe a lock, for which the recomputation would wait for ever."""
    app = make(engine_options={'pool_size': 1, 'max_overflow': 0, 'pool_timeout': 1})
    value(app, tenant, lambda app: app.right)
    with app.request_scope(tenant) as scope:
        with app.request_scope(tenant):
            assert app.right == NAMES
        assert counts(app, 'right') == {'agreed': 1}
        scope.session().connection()
        with app.request_scope(tenant):
            assert app.right == NAMES
    assert counts(app, 'right') == {'agreed': 1, 'untold': 1}


def test_bounded(app: App, tenant: str) -> None:
    """Of one scope, a limited number of hits is recomputed."""
    for _ in range(2):
        with app.request_scope(tenant):
            for id in range(MAX_HITS + 5):
                app.wrong_of(id)
    assert counts(app, 'wrong_of') == {'agreed': MAX_HITS}


def test_share(make: Callable[..., App], tenant: str) -> None:
    """A share of the hits is recomputed."""
    app = make(check_hits=0.5)
    for _ in range(101):
        value(app, tenant, lambda app: app.right)
    assert 10 < numbers(app, 'right').checks < 90


def test_off(applications: Applications) -> None:
    """By default, no hit is recomputed."""
    assert applications.start(App).orm_cache.auditor is None


@pytest.mark.parametrize('share', [-0.1, 1.1, float('nan'), True, '1', None])
def test_wrong_settings(share: Any) -> None:
    """A share that is none is refused."""
    with pytest.raises(ConfigurationError, match=r'check_hits is .*; expected a number from 0'):
        OrmCache(base=Base, check_hits=share)


def test_hosts_are_refused(tmp_path: Any) -> None:
    """A host that makes its own sessions can't be audited, and is told so."""
    engine = create_engine(f'sqlite:///{tmp_path}/one')
    observer = observe(
        engine=engine, sessions=sessionmaker(engine), metadata=Base.metadata,
        schema_of=lambda connection: 'main',
    )  # fmt: skip
    with pytest.raises(ConfigurationError, match='check_hits needs sessions of the package'):
        OrmCache(observer=observer, check_hits=1)
    engine.dispose()


#: The properties that are right, and the number of their hits that are compared.
RIGHT = ('right', 'shapes', 'by_role')
ENOUGH = 2000


@pytest.mark.parametrize('level', ['READ COMMITTED', 'REPEATABLE READ'])
def test_nobody_is_accused_beside_writers(
    on_servers: Applications, tenant: str, level: str
) -> None:
    """Beside writers in two processes' worth of applications, thousands of hits are compared, and
    all agree. The wrong policy beside them is found."""
    settings = {'engine_options': {'isolation_level': level}, 'check_hits': 1, 'audit': 'off'}
    app = on_servers.start(App, **settings)
    other = on_servers.elsewhere(app)
    change(app, tenant, *map(named, NAMES), Group(id=1, name='a'))
    with app.request_scope(tenant) as scope:
        scope.session().connection()
    ended = Event()

    def write(by: App) -> None:
        choice = random.Random()
        while not ended.is_set():
            try:
                with committed(by, tenant) as scope:
                    renamed = update(User).where(User.id == choice.randint(1, 30))
                    scope.session().execute(renamed.values(name=f'{choice.random()}'))
            except Exception as error:
                if not by.orm_cache.is_conflict(error):
                    raise
            ended.wait(0.1)

    def read(by: App) -> None:
        while not ended.is_set():
            try:
                with by.request_scope(tenant):
                    _ = by.right, by.shapes, by.by_role, by.wrong
            except Exception as error:
                if not by.orm_cache.is_conflict(error):
                    raise

    def until_enough() -> None:
        end = monotonic() + 60
        while monotonic() < end and sum(found(name).checks for name in RIGHT) < ENOUGH:
            ended.wait(0.2)

    def found(name: str) -> PropertyStatistics:
        other.orm_cache.statistics.flush()
        return numbers(app, name)

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(write, app), pool.submit(write, other)]
        tasks += [pool.submit(read, each) for each in (app, other, app, other)]
        try:
            until_enough()
        finally:
            ended.set()
        for task in tasks:
            task.result()
    audits = [found(name).audits for name in RIGHT]
    assert sum(audit['agreed'] for audit in audits) >= ENOUGH
    assert all(set(audit) == {'agreed', 'untold'} for audit in audits)  # the writers were there
    assert found('wrong').disagreements > 0
