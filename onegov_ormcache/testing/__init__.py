"""The test kit: applications for one test, counters, and assertions about what is cached.

It needs no pytest. The plugin, :mod:`onegov_ormcache.pytest_plugin`, has fixtures that use it.
"""

from .applications import configured, open_app, open_cache
from .assertions import assert_cached, assert_evicted_by, assert_not_evicted
from .blocks import disabled, recording
from .counting import CreatorRuns, creator_runs, db_queries, redis_ops

__all__ = [
    'CreatorRuns',
    'assert_cached',
    'assert_evicted_by',
    'assert_not_evicted',
    'configured',
    'creator_runs',
    'db_queries',
    'disabled',
    'open_app',
    'open_cache',
    'recording',
    'redis_ops',
]
