"""Random orders of what applications do, on the real code, against a model of the promise.

Many request scopes are open at once, in one thread, in two applications that stand
for two processes. The model is plain: the states that the database had, one after
the other, and each scope's own row. What a property gives must be one of the states
since the scope's transaction began, with the scope's own change; what comes from a
tier must be the state at that begin; under a lasting view all of it must be one state.

``--hypothesis-profile=long`` walks more and longer ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.consistency.machine.rules import CacheMachine
from tests.consistency.machine.worlds import LEVELS, Embedded, OnServers, World
from tests.consistency.town import Town
from tests.support.applications import Applications
from tests.support.backends import Backend
from tests.support.examples import examples
from tests.support.servers import RedisServer, drop_schemas


def walks(number: int) -> settings:
    """So many walks of thirty steps; with the profile `long`, more and longer ones."""
    is_long = settings.get_current_profile_name() == 'long'
    return examples(
        number,
        stateful_step_count=60 if is_long else 30,
        suppress_health_check=list(HealthCheck),
    )


def names_of_tenants() -> list[str]:
    return [f't{uuid4().hex[:12]}_{name}' for name in ('one', 'two')]


#: Cold locks and database locks are not waited for: all scopes are in one thread.
IMPATIENT = {'lock_timeout': 0.02, 'lease': 600.0}

#: Seconds for a walk that fails, too: Hypothesis looks for a shorter one for five minutes.
pytestmark = pytest.mark.timeout(600)


class TestEmbedded:
    """SQLite files and memory."""

    @pytest.fixture
    def world(self, tmp_path: Path, namespace: str) -> Iterator[World]:
        dsn = f'sqlite:///{tmp_path}/tenants'
        backend = Backend('embedded', {'dsn': dsn, 'redis_url': None, 'namespace': namespace})
        with ExitStack() as stack:
            options = {'connect_args': {'timeout': 0.01}}
            app = Applications(backend, stack).start(Town, engine_options=options, **IMPATIENT)
            tenants = names_of_tenants()
            for tenant in tenants:
                with app.request_scope(tenant):
                    pass
            yield Embedded(tmp_path / 'tenants', tenants, app)

    def test_promise(self, world: World) -> None:
        """No order of reads, changes, ends and deaths breaks the promise."""
        run_state_machine_as_test(lambda: CacheMachine(world), settings=walks(60))


class TestOnServers:
    """PostgreSQL and Redis, under each isolation level."""

    @pytest.fixture
    def world(
        self, postgres_dsn: str, own_redis: RedisServer, namespace: str
    ) -> Iterator[World]:
        common = {'dsn': postgres_dsn, 'redis_url': own_redis.url}
        tenants = names_of_tenants()
        apps: dict[str, list[Town]] = {}
        with ExitStack() as stack:
            for level in LEVELS:
                own = f'{namespace}-{level.replace(" ", "-")}'
                backend = Backend('servers', {**common, 'namespace': own})
                applications = Applications(backend, stack)
                options = {
                    'isolation_level': level,
                    'connect_args': {'options': '-c lock_timeout=200ms'},
                }
                app = applications.start(Town, engine_options=options, **IMPATIENT)
                apps[level] = [app, applications.elsewhere(app)]
                for tenant in tenants:
                    with app.request_scope(tenant):
                        pass
            world = OnServers(postgres_dsn, own_redis, tenants, apps)
            yield world
            world.connection.close()
        for tenant in tenants:
            drop_schemas(postgres_dsn, tenant)

    def test_promise(self, world: World) -> None:
        """No order of reads, changes, ends, deaths and losses breaks the promise."""
        run_state_machine_as_test(lambda: CacheMachine(world), settings=walks(40))
