"""What a cache counts: of its properties, its commits and its tags."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Event
from typing import Any

import pytest
from sqlalchemy import update

from onegov_ormcache import OrmCache, orm_cached
from onegov_ormcache.statistics.results import PropertyStatistics, TenantStatistics
from onegov_ormcache.steps import Step
from tests.core.plain_objects import Names, add
from tests.support.backends import Backend
from tests.support.forking import FORKS, in_child
from tests.support.models import Base, User

USERS = 'tests.core.plain_objects.Names.users'


class Odd:
    """An object whose properties are not stored, each for another reason."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache

    @orm_cached(policy='auto')
    def untold(self) -> int:
        return 1

    @orm_cached(policy=User)
    def large(self) -> str:
        return 'x' * 2000

    @orm_cached(policy=User, expires=lambda value: value)
    def past(self) -> datetime:
        return datetime(2000, 1, 1, tzinfo=UTC)

    @orm_cached(policy=User)
    def failing(self) -> int:
        raise ZeroDivisionError

    @orm_cached(policy=User)
    def name(self, number: int) -> str:
        return f'{number}'


def of(cache: OrmCache, tenant: str, name: str) -> PropertyStatistics:
    """Return what was counted of a property."""
    found = cache.statistics.of(tenant).properties
    return next(counted for where, counted in found.items() if where.endswith(f'.{name}'))


def test_reads_are_counted_by_tier(cache: OrmCache, tenant: str) -> None:
    """Each read counts for the tier that has answered it; the run has a time and a size."""
    for _ in range(2):
        with cache.scope(tenant):
            names = Names(cache)
            assert [names.users for _ in range(3)] == [(), (), ()]
    cache.process_tier.of('').clear()
    with cache.scope(tenant):
        assert Names(cache).users == ()
    counted = cache.statistics.of(tenant).properties[USERS]
    assert counted.misses == counted.runs == counted.stored == 1
    assert (counted.request_hits, counted.process_hits, counted.shared_hits) == (4, 1, 1)
    assert counted.hit_rate == pytest.approx(6 / 7)
    assert counted.run_seconds > 0
    assert counted.last_run is not None
    assert counted.last_run.size == counted.stored_bytes > 0
    assert 'table:users' in counted.last_run.tags
    assert counted.last_run.why_not_stored == ''


def test_request_tier_is_counted_by_sampling(cache: OrmCache, tenant: str) -> None:
    """One scope of several counts what its request tier answers, for the others too."""
    cache.statistics.sampling = 2
    for _ in range(4):
        with cache.scope(tenant):
            names = Names(cache)
            assert [names.users for _ in range(3)] == [(), (), ()]
    counted = cache.statistics.of(tenant).properties[USERS]
    assert counted.request_hits == 2 * 2 * 2


def test_commits_are_counted(cache: OrmCache, tenant: str) -> None:
    """Commits that change tags are counted, with their tags; others are not."""
    add(cache, tenant, User(name='Ada'))
    add(cache, tenant, User(name='Bob'))
    with cache.scope(tenant) as scope:
        scope.session().query(User).all()
        scope.commit()
    found = cache.statistics.of(tenant)
    assert found.commits == 2
    assert found.changed_tags >= found.doubted_tags >= 2
    assert found.tags['table:users'].changes == 2
    assert found.tags['table:users'].last_change == pytest.approx(found.last_commits[0].at, abs=1)
    assert ['table:users' in commit.tags for commit in found.last_commits] == [True, True]


def test_commits_that_change_no_row(cache: OrmCache, tenant: str) -> None:
    """A commit whose statements have matched no row evicts nothing on PostgreSQL, and is neither
    counted nor recorded then."""
    add(cache, tenant, User(name='Ada'))
    before, version = cache.statistics.of(tenant), cache.snapshot(tenant).version('table:users')
    with cache.scope(tenant) as scope, cache.recording() as events:
        scope.session().execute(update(User).where(User.name == 'nobody').values(name='Bob'))
        scope.commit()
    has_evicted = cache.snapshot(tenant).version('table:users') != version
    assert has_evicted == cache.tags.single_process
    found = cache.statistics.of(tenant)
    assert found.commits == before.commits + has_evicted
    assert found.tags['table:users'].changes == before.tags['table:users'].changes + has_evicted
    assert len(events) == has_evicted


def test_changes_that_are_no_commits_of_this_process(cache: OrmCache, tenant: str) -> None:
    """A change that a process is told of counts for its tags, and is no commit."""
    with cache.scope(tenant) as scope:
        scope.snapshot()
        scope.connection()
    before = cache.statistics.of(tenant)
    cache.renew_later(tenant)
    found = cache.statistics.of(tenant)
    assert found.commits == before.commits
    assert found.last_commits[0].is_outside
    assert found.last_commits[0].tags == ('#code',)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [('untold', 'tainted'), ('large', 'too large'), ('past', 'expired')],
)
def test_values_that_are_not_stored(
    backend: Backend, tenant: str, name: str, reason: str
) -> None:
    """A value that is not stored counts for the reason, which the last run tells in words."""
    settings: dict[str, Any] = {**backend.settings, 'statistics_interval': None}
    with OrmCache(base=Base, max_value_size=1000, **settings) as cache:
        with cache.scope(tenant):
            getattr(Odd(cache), name)
        counted = of(cache, tenant, name)
    assert counted.refused == {reason: 1}
    assert counted.stored == 0
    assert counted.last_run is not None
    assert counted.last_run.why_not_stored


def test_failed_runs(cache: OrmCache, tenant: str) -> None:
    """A run that raises is one run, and no value."""
    with cache.scope(tenant), pytest.raises(ZeroDivisionError):
        Odd(cache).failing
    counted = of(cache, tenant, 'failing')
    assert (counted.runs, counted.failed_runs, counted.misses, counted.stored) == (1, 1, 0, 0)


def test_values_by_argument(cache: OrmCache, tenant: str) -> None:
    """All values of a property with arguments are counted together."""
    with cache.scope(tenant):
        assert Odd(cache).name.many([1, 2]) == {1: '1', 2: '2'}
        assert Odd(cache).name(3) == '3'
    counted = of(cache, tenant, 'name')
    assert (counted.misses, counted.runs, counted.stored) == (3, 3, 3)


@pytest.mark.parametrize('fork', FORKS)
def test_a_fork_in_a_scope(cache: OrmCache, tenant: str, fork: str) -> None:
    """What a scope had counted before a fork is counted once, by the parent."""
    if cache.tags.single_process:
        pytest.skip('A child can not use the embedded default')

    def child() -> None:
        with cache.scope(tenant):
            Names(cache).groups
        scope.close()
        cache.statistics.flush()

    with cache.scope(tenant) as scope:
        Names(cache).users
        scope.commit()
        Names(cache).users
        in_child(FORKS[fork], child)
    found = cache.statistics.of(tenant).properties
    assert (found[USERS].misses, found[USERS].process_hits + found[USERS].misses) == (1, 2)
    assert of(cache, tenant, 'groups').misses == 1


def test_own_changes_pass_the_cache_by(cache: OrmCache, tenant: str) -> None:
    """A transaction that has changed a table reads it past the cache, and stores nothing."""
    with cache.scope(tenant) as scope:
        scope.session().add(User(name='Ada'))
        assert Names(cache).users == (('Ada',),)
    counted = cache.statistics.of(tenant).properties[USERS]
    assert counted.bypasses == {'own change': 1}
    assert counted.refused == {'own change': 1}


def test_waits_are_counted(
    cache: OrmCache, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that waits for the run of another one is counted, with the time."""
    is_running, is_awaited = Event(), Event()

    class Slow(Names):
        @orm_cached(policy=User)
        def slow(self) -> int:
            is_running.set()
            assert is_awaited.wait(30)
            return 1

    def read() -> None:
        with cache.scope(tenant):
            assert Slow(cache).slow == 1

    def heard(step: Step) -> None:
        if step is Step.WAIT:
            is_awaited.set()

    monkeypatch.setattr('onegov_ormcache.steps.listener', heard)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(read)
        assert is_running.wait(30)
        second = threads.submit(read)
        first.result(), second.result()
    counted = of(cache, tenant, 'slow')
    assert counted.waits == 1
    assert counted.wait_seconds > 0
    assert counted.runs == 1


def test_history_has_the_present_hour(cache: OrmCache, tenant: str) -> None:
    """What was counted last is in the latest hour."""
    for _ in range(2):
        with cache.scope(tenant):
            Names(cache).users
    slot = cache.statistics.history(tenant)[-1]
    assert (slot.properties[USERS].misses, slot.properties[USERS].hits) == (1, 1)
    assert slot.start % 3600 == 0


def test_tenants_are_listed(cache: OrmCache, tenant: str) -> None:
    """Tenants of which anything was counted are listed; of all others the numbers are empty."""
    assert cache.statistics.of('nobody') == TenantStatistics('nobody')
    assert tenant not in cache.statistics.tenants()
    add(cache, tenant, User(name='Ada'))
    assert tenant in cache.statistics.tenants()


def test_an_interrupt_while_numbers_are_handed_over(
    cache: OrmCache, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scope whose thread is interrupted then, by a timeout of gevent for example, uses nothing
    of the snapshot that has ended."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # the second time without a quarantine
        with cache.scope(tenant):
            assert Names(cache).users == ()
    with cache.scope(tenant) as scope:
        assert Names(cache).users == ()
        assert scope.opened_session is None
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(cache.statistics, 'take', interrupt)
            scope.commit()
        with ThreadPoolExecutor(1) as threads:
            threads.submit(add, cache, tenant, User(name='Ada')).result()
        assert Names(cache).users == (('Ada',),)
