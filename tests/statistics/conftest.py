"""Fixtures of the statistics: a cache that counts, on each back end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onegov_ormcache import OrmCache
from tests.support.backends import Backend
from tests.support.models import Base


@pytest.fixture
def cache(backend: Backend) -> Iterator[OrmCache]:
    """A cache that sends its numbers only when it is asked to, and counts all that the request
    tier answers."""
    with OrmCache(base=Base, statistics_interval=None, **backend.settings) as cache:
        cache.statistics.sampling = 1
        yield cache
