"""The plugin for pytest, which is loaded wherever the package is installed: two fixtures.

It imports nothing of the package before a test uses a fixture, so that tests of other packages
do not wait for it. The rest of the test kit is imported from :mod:`onegov_ormcache.testing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

if TYPE_CHECKING:
    from .core.cache import OrmCache

AppT = TypeVar('AppT')


class OpensApp(Protocol):
    """The fixture ``ormcache_app``."""

    def __call__(self, app_class: type[AppT], /, **settings: Any) -> AppT:
        """Return a root app of a class derived from the given one, set up; see
        :func:`.open_app`."""


class OpensCache(Protocol):
    """The fixture ``ormcache``."""

    def __call__(self, **settings: Any) -> OrmCache:
        """Return a cache; see :func:`.open_cache`."""


@pytest.fixture
def ormcache_app(tmp_path: Path) -> Iterator[OpensApp]:
    """Opens applications on the embedded default: `app = ormcache_app(App, attempts=1)`.

    Each has a folder and settings of its own. All are closed after the test.
    """
    from .testing import open_app

    folders = (tmp_path / f'ormcache-app-{number}' for number in count(1))
    with ExitStack() as stack:

        def opened(app_class: type[AppT], /, **settings: Any) -> AppT:
            return stack.enter_context(open_app(app_class, next(folders), **settings))

        yield opened


@pytest.fixture
def ormcache(tmp_path: Path) -> Iterator[OpensCache]:
    """Opens caches without Morepath on the embedded default: `cache = ormcache(base=Base)`.

    Each has a folder and settings of its own. All are closed after the test.
    """
    from .testing import open_cache

    folders = (tmp_path / f'ormcache-{number}' for number in count(1))
    with ExitStack() as stack:

        def opened(**settings: Any) -> OrmCache:
            return stack.enter_context(open_cache(next(folders), **settings))

        yield opened
