"""The town hall that its tests visit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from fixtures.townhall import make_application
from tests.functional.visitors import TownHall
from tests.support.backends import Backend


@pytest.fixture
def hall(backend: Backend, make_tenant: Callable[[str], str]) -> Iterator[TownHall]:
    """A town hall with Iceland's data."""
    prefix = make_tenant('x')[:-1]
    application = make_application(backend.settings, prefix=prefix)
    hall = TownHall(application, prefix)
    hall.load('is')
    yield hall
    application.app.close_orm_cache()
