"""Fixtures of the core: a cache without Morepath."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from onegov_ormcache import OrmCache
from tests.support.backends import Backend
from tests.support.models import Base


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has made."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cache(backend: Backend, stack: ExitStack) -> OrmCache:
    """A cache on each back end in turn."""
    return stack.enter_context(OrmCache(base=Base, **backend.settings))
