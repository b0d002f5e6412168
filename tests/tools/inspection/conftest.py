"""An application on each back end, with values of every kind, and its site."""

from __future__ import annotations

import pytest

from onegov_ormcache.tools.inspection.sites import Site
from tests.support.applications import Applications, change, value
from tests.support.models import User
from tests.tools.inspection.inspected_town import Town, read


@pytest.fixture
def town(applications: Applications, tenant: str) -> Town:
    """The application, of which all values are cached."""
    app = applications.start(Town)
    change(app, tenant, User(name='Ada'))
    assert value(app, tenant, read) == (['Ada'], 'Ada', [], 'short')
    return app


@pytest.fixture
def site(town: Town) -> Site:
    """The site of the application's cache."""
    return Site.of(town.orm_cache)
