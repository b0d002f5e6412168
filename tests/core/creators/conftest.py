"""Fixtures: a cache of the shop, and the shop."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from onegov_ormcache import OrmCache
from tests.core.creators.shop import Base, Shop, fill
from tests.support.backends import Backend


@pytest.fixture
def cache(backend: Backend, stack: ExitStack, tenant: str) -> OrmCache:
    """A cache on each back end in turn, whose tenant is filled."""
    cache = stack.enter_context(OrmCache(base=Base, **backend.settings))
    fill(cache, tenant)
    return cache


@pytest.fixture
def shop(cache: OrmCache) -> Shop:
    """A shop whose properties belong to the cache."""
    return Shop(cache)
