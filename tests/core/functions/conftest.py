"""Fixtures: the app with functions of users."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.functions.directory import App
from tests.support.applications import Applications, change
from tests.support.counting import Runs
from tests.support.models import User


@pytest.fixture
def app_class(runs: Runs) -> type[App]:
    """A class of the test's own, which may be changed."""
    return type('App', (App,), {'runs': runs, '__module__': __name__})


@pytest.fixture
def app(app_class: type[App], applications: Applications, tenant: str) -> App:
    """The app on each back end in turn, with the users 1 to 9."""
    return started(applications, app_class, tenant)


@pytest.fixture
def server_app(app_class: type[App], on_servers: Applications, tenant: str) -> App:
    """The app on PostgreSQL and Redis, with the users 1 to 9."""
    return started(on_servers, app_class, tenant)


def started(
    applications: Applications, app_class: type[App], tenant: str, **settings: Any
) -> App:
    """Return an app whose tenant has users."""
    app = applications.start(app_class, **settings)
    change(app, tenant, *(User(id=id, name=f'user {id}') for id in range(1, 10)))
    with app.request_scope(tenant) as scope:
        scope.session().connection()  # the quarantine has ended
    return app
