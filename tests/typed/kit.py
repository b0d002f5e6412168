"""The test kit gives back the class that it was given."""

from __future__ import annotations

from typing import assert_type

from onegov_ormcache import OrmCache, OrmCacheApp, orm_cached
from onegov_ormcache.core.recording import RecordedEvents
from onegov_ormcache.pytest_plugin import OpensApp, OpensCache
from onegov_ormcache.testing import (
    assert_cached,
    assert_evicted_by,
    creator_runs,
    db_queries,
    open_app,
    open_cache,
    recording,
)
from tests.support.models import Base, User


class App(OrmCacheApp):
    @orm_cached(policy=User)
    def count(self) -> int:
        return 1


def fixtures(ormcache_app: OpensApp, ormcache: OpensCache) -> None:
    app = ormcache_app(App, attempts=1)
    assert_type(app, App)
    assert_type(app.count, int)
    assert_type(ormcache(base=Base), OrmCache)
    ormcache_app(app)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def blocks() -> None:
    with open_app(App) as app, open_cache(base=Base) as cache:
        assert_type(app, App)
        assert_type(cache, OrmCache)
        assert_cached(app, 'count', tier='shared', schema='main')
        assert_cached(app, 'count', tier='redis')  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        with assert_evicted_by(app, 'count', args=(1, 2)), db_queries(1) as statements:
            assert_type(statements, list[str])
        with creator_runs(app) as runs, recording(cache, limit=3) as events:
            assert_type(runs['count'], int)
            assert_type(events, RecordedEvents)
            assert_type(events.dropped, int)
