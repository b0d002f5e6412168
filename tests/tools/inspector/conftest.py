"""The site of the inspector's tests, on each back end, with two tenants."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.applications import Applications, change
from tests.support.models import User
from tests.support.site_with_inspector import Granting


@pytest.fixture
def site(applications: Applications, tenant: str, other: str) -> Granting:
    """A site whose tenants have a user each."""
    app = applications.start(Granting, statistics_interval=None)
    for name in tenant, other:
        change(app, name, User(name=f'Ann of {name}'))
    return app


@pytest.fixture
def other(make_tenant: Callable[[str], str]) -> str:
    """Another tenant than the one of the test's own."""
    return make_tenant('other')
