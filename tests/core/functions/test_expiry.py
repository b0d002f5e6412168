"""Values that end by themselves, and what is made of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import redis

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from onegov_ormcache.errors import PropertyError
from tests.support.applications import Applications, value
from tests.support.counting import Runs
from tests.support.models import User
from tests.support.outside import until

#: Seconds after which a test that is wrong ends.
LONG = 60


def soon(_: Any) -> datetime:
    return datetime.now(UTC) + timedelta(milliseconds=50)


class App(OrmCacheApp):
    """An app whose values end soon, late, or never."""

    runs: Runs
    moment: Callable[[Any], Any] = staticmethod(soon)

    @orm_cached(policy=User, expires=0.05)
    def brief(self) -> int:
        self.runs('brief')
        return self.runs.count('brief')

    @orm_cached(policy=User, expires=lambda found: App.moment(found))
    def until(self, number: int) -> list[int]:
        self.runs('until')
        return [number, self.runs.count('until')]

    @orm_cached(policy=User, expires=3600)
    def long(self) -> int:
        self.runs('long')
        return self.brief

    @request_cached
    def through(self) -> int:
        return self.brief

    @orm_cached(policy=User)
    def nested(self) -> int:
        self.runs('nested')
        return self.through

    @orm_cached(policy=User)
    def several(self, number: int) -> Any:
        self.runs('several')
        return self.until.many([number, number + 1])

    @orm_cached(policy=User)
    def for_ever(self) -> int:
        self.runs('for_ever')
        return 1


@pytest.fixture
def app_class(runs: Runs) -> Iterator[type[App]]:
    """The class, whose moment a test may change."""
    App.runs = runs
    yield App
    App.moment = staticmethod(soon)


READS: dict[str, Callable[[Any], Any]] = {
    'brief': lambda app: app.brief,
    'until': lambda app: app.until(1),
    'long': lambda app: app.long,
    'nested': lambda app: app.nested,
    'several': lambda app: app.several(1),
    'many': lambda app: app.several.many([1, 2]),
}


@pytest.mark.parametrize('name', READS)
def test_values_end(
    applications: Applications, app_class: type[App], tenant: str, runs: Runs, name: str
) -> None:
    """A value ends at its moment, in each tier and process, and so does what is made of it; within
    its transaction it stays."""
    app = applications.start(app_class)
    elsewhere = applications.elsewhere(app)
    read = READS[name]
    with app.request_scope(tenant):
        first = read(app)
        before = runs.total
        until(lambda: value(elsewhere, tenant, read) != first, LONG)
        assert runs.total > before
        assert read(app) == first
    assert value(app, tenant, read) != first


def test_the_earlier_moment_counts(
    on_servers: Applications, app_class: type[App], tenant: str, runs: Runs
) -> None:
    """Of the moment of a property, those of what it is made of and the setting's, the earliest
    is the one when Redis drops the value."""
    app_class.moment = staticmethod(lambda _: datetime.now(UTC) + timedelta(hours=2))
    app = on_servers.start(app_class, expiration_time=1800)
    url = on_servers.backend.settings['redis_url']
    with redis.Redis.from_url(url) as client:

        def left(app: App, read: Callable[[Any], Any], key: str) -> float:
            value(app, tenant, read)
            keys = client.keys(f'*{app.settings.orm_cache.namespace}*:value:*{key}*')
            return float(client.pttl(keys[-1])) / 1000

        assert left(app, READS['until'], 'App.until') <= 1800
        assert left(app, lambda app: app.for_ever, 'App.for_ever') <= 1800
        other = on_servers.start(app_class, release='other')
        assert 7000 < left(other, READS['until'], 'other:*App.until') <= 7200
        assert 7000 < left(other, READS['several'], 'other:*App.several') <= 7200
        # within another process, too, that has it from Redis
        again = on_servers.again(type(other))
        value(again, tenant, READS['several'])
        with again.request_scope(tenant):
            slots = [slot for key, slot in app_slots(again) if 'App.several' in key]
        assert len(slots) == 1


def app_slots(app: App) -> list[tuple[str, Any]]:
    """Return what the process tier has of the current tenant."""
    return list(app.schema_cache.items())


@pytest.mark.parametrize(
    'ended', [timedelta(0), timedelta(microseconds=-1), timedelta(days=-10000)]
)
def test_values_that_have_ended(
    applications: Applications, app_class: type[App], tenant: str, runs: Runs, ended: timedelta,
    caplog: Any,
) -> None:  # fmt: skip
    """A value that has ended when it was computed is returned, and not stored; the log says so
    once."""
    app_class.moment = staticmethod(lambda _: datetime.now(UTC) + ended)
    app = applications.start(app_class)
    with caplog.at_level(logging.WARNING, 'onegov_ormcache'):
        for number in 1, 2, 3:
            assert value(app, tenant, READS['until']) == [1, number]
        with app.request_scope(tenant):
            assert app.until(1) == app.until(1) == [1, 4]
            assert app.until.many([1, 2]) == {1: [1, 4], 2: [2, 5]}
    logged = [record for record in caplog.records if 'had expired' in record.getMessage()]
    assert len(logged) == 1
    assert 'App.until' in logged[0].getMessage()


@pytest.mark.parametrize(
    'moment',
    [
        lambda _: datetime(2099, 1, 1), lambda _: 5, lambda _: 'tomorrow', lambda _: date.max,
        lambda _: timedelta(1), lambda _: datetime.max, lambda _: False,
    ],
)  # fmt: skip
def test_moments_that_are_none(
    applications: Applications, app_class: type[App], tenant: str, moment: Callable[[Any], Any]
) -> None:
    """A naive datetime, or anything else, is an error that names the property, each time; nothing
    is stored, and nobody waits."""
    app_class.moment = staticmethod(moment)
    app = applications.start(app_class)
    for read in READS['until'], READS['until'], READS['several']:
        with pytest.raises(PropertyError, match=r'until: expires gave .* with a time zone'):
            value(app, tenant, read)
    app_class.moment = staticmethod(lambda _: None)
    assert value(applications.elsewhere(app), tenant, READS['until'])[0] == 1


def test_a_moment_that_fails(
    applications: Applications, app_class: type[App], tenant: str
) -> None:
    """An error of the function is that of the read, and leaves nothing behind."""
    app_class.moment = staticmethod(lambda found: found[5])
    app = applications.start(app_class)
    for read in READS['until'], READS['many']:
        with pytest.raises(IndexError):
            value(app, tenant, read)
    app_class.moment = staticmethod(lambda _: None)
    assert value(applications.elsewhere(app), tenant, READS['until'])[0] == 1


@pytest.mark.parametrize(
    'moment',
    [
        lambda _: None,
        lambda _: datetime.max.replace(tzinfo=UTC),
        lambda _: datetime.now(UTC) + timedelta(days=400_000),
    ],
)
def test_moments_far_away(
    applications: Applications, app_class: type[App], tenant: str, moment: Callable[[Any], Any]
) -> None:
    """None, and any moment to come, will do."""
    app_class.moment = staticmethod(moment)
    app = applications.start(app_class)
    for each in app, app, applications.elsewhere(app):
        assert value(each, tenant, READS['until']) == [1, 1]


@pytest.mark.parametrize('seconds', [1e-9, 1e-6, 0.0004, 1e9, 1e300, 2**70, math.ulp(0)])
def test_seconds_of_any_size(
    applications: Applications, tenant: str, runs: Runs, seconds: float
) -> None:
    """Seconds may be as few and as many as a number can be."""

    class Brief(OrmCacheApp):
        @orm_cached(policy=User, expires=seconds)
        def found(self, number: int) -> int:
            runs('found')
            return number

    app = applications.start(Brief)
    for _ in range(2):
        assert value(app, tenant, lambda app: app.found(1)) == 1
        assert value(app, tenant, lambda app: app.found.many([1, 2])) == {1: 1, 2: 2}
    if seconds > 1:
        assert value(applications.elsewhere(app), tenant, lambda app: app.found(1)) == 1
        assert runs.count('found') == 2


@pytest.mark.parametrize(
    'expires',
    [0, -1, -0.0, math.nan, math.inf, -math.inf, True, False, '10', timedelta(1),
     datetime(2099, 1, 1, tzinfo=UTC), [1], 10**400],
)  # fmt: skip
def test_expires_that_is_none(expires: Any) -> None:
    """What is no number of seconds above 0, and no function, is refused where it is declared."""
    with pytest.raises(PropertyError, match=r'found .*test_expiry\.py:\d+.*expires='):

        @orm_cached(policy=User, expires=expires)
        def found(app: Any) -> int:
            return 1
