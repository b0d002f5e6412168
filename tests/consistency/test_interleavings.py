"""One test per race that is known from peers, forced in its order on the real code.

Each scenario gives what it found wrong. With all guards it finds nothing; each
guard is one that some scenario misses when it is removed.
"""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from onegov_ormcache import steps
from onegov_ormcache.steps import Step
from tests.support.applications import Applications
from tests.support.models import User
from tests.support.servers import RedisServer

from .interleaving import before
from .mutants import MUTANTS
from .races.commits import (
    after_commit_hook,
    evict_before_commit,
    fill_between_doubt_and_commit,
    read_between_commit_and_publish,
    slow_fill_after_a_change,
    snapshot_of_an_epoch,
    two_connections_in_one_scope,
)
from .races.doubts import (
    asked_beside_its_writer,
    doubt_that_travels,
    first_doubt_arrives_last,
    forgotten_before_the_change,
)
from .races.losses import (
    fill_from_within_the_quarantine,
    keys_evicted_one_by_one,
    lost_doubt,
    read_in_the_quarantine,
    schema_replaced_by_another_program,
    server_rolled_back_to_a_dump,
)
from .races.moved_rows import (
    brought_from_elsewhere,
    kept_over_a_commit,
    moved_before_its_new_versions,
    moved_before_the_flush,
    moved_between_two_flushes,
    moved_by_a_statement,
    moved_in_an_outage,
    moved_twice,
)
from .races.outcomes import commit_whose_answer_is_lost, dead_writer, slow_writer
from .races.transaction_ends import (
    carried_over_a_commit,
    ends_without_a_statement,
    mutation_carried_over,
    recached_rollback,
    request_cached_over_a_commit,
    savepoint,
    transaction_ends_in_a_creator,
)
from .races.views import (
    fill_from_an_old_view,
    memory_from_an_old_snapshot,
    session_of_another_scope,
    torn_page,
    value_returned_before_the_view,
    view_between_two_snapshots,
)
from .races.witnesses import (
    code_of_the_database,
    compiled_statement,
    cursor_of_the_driver,
    table_of_another_tenant,
    text_that_commits,
    text_that_commits_and_begins,
    trigger_of_the_database,
    trigger_that_is_new,
)
from .races.world import App, Scenario, World, driver_connection
from .races.write_skews import (
    write_skew,
    write_skew_beside_a_lost_doubt,
    write_skew_beside_the_end_of_a_quarantine,
    write_skew_in_a_quarantine,
    write_skew_through_a_creator,
)


@pytest.fixture
def world(on_servers: Applications, tenant: str, own_redis: RedisServer) -> World:
    return World(on_servers, tenant, own_redis)


SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        evict_before_commit, fill_between_doubt_and_commit, read_between_commit_and_publish,
        slow_fill_after_a_change, recached_rollback, after_commit_hook, fill_from_an_old_view,
        memory_from_an_old_snapshot, view_between_two_snapshots, value_returned_before_the_view,
        dead_writer, slow_writer, lost_doubt, fill_from_within_the_quarantine,
        read_in_the_quarantine,
        commit_whose_answer_is_lost, carried_over_a_commit, request_cached_over_a_commit,
        transaction_ends_in_a_creator, mutation_carried_over, savepoint,
        schema_replaced_by_another_program, server_rolled_back_to_a_dump,
        keys_evicted_one_by_one, snapshot_of_an_epoch, write_skew,
        ends_without_a_statement, write_skew_through_a_creator, session_of_another_scope,
        two_connections_in_one_scope, compiled_statement, code_of_the_database,
        cursor_of_the_driver, trigger_of_the_database, trigger_that_is_new,
        table_of_another_tenant, text_that_commits, text_that_commits_and_begins, torn_page,
        write_skew_in_a_quarantine, write_skew_beside_the_end_of_a_quarantine,
        write_skew_beside_a_lost_doubt, forgotten_before_the_change, doubt_that_travels,
        first_doubt_arrives_last, asked_beside_its_writer, moved_before_the_flush, moved_twice,
        moved_before_its_new_versions, moved_by_a_statement, moved_in_an_outage,
        moved_between_two_flushes,
        brought_from_elsewhere, kept_over_a_commit,
    )
}  # fmt: skip

#: Which scenario notices that a guard is gone.
NOTICED_BY = {
    'doubt': 'read_between_commit_and_publish',
    'doubt after the first change': 'forgotten_before_the_change',
    'answer before COMMIT': 'doubt_that_travels',
    'sum of doubts': 'first_doubt_arrives_last',
    'lock of the writer': 'asked_beside_its_writer',
    'stamp check on fill': 'lost_doubt',
    'stamp check on read': 'snapshot_of_an_epoch',
    'process tier only after the shared one': 'read_in_the_quarantine',
    'snapshot before view': 'fill_from_an_old_view',
    'second snapshot': 'view_between_two_snapshots',
    'own-change bypass': 'recached_rollback',
    'request tier ended by commit': 'carried_over_a_commit',
    'unknown outcome left to settling': 'commit_whose_answer_is_lost',
    'settling': 'dead_writer',
    'savepoint drop': 'savepoint',
    'quarantine': 'lost_doubt',
    'its new birth': 'fill_from_within_the_quarantine',
    'run_id': 'server_rolled_back_to_a_dump',
    'fresh epochs': 'snapshot_of_an_epoch',
    'identity': 'schema_replaced_by_another_program',
    'asking again': 'schema_replaced_by_another_program',
    'P4 of computed values': 'torn_page',
    'P5': 'write_skew',
    'P5 across a loss': 'write_skew_beside_a_lost_doubt',
    'notes of the compiler': 'compiled_statement',
    'lock table': 'code_of_the_database',
    'cursor factory': 'cursor_of_the_driver',
    'catalog': 'trigger_of_the_database',
    'definitions checked with the doubt': 'trigger_that_is_new',
    'place of a change': 'table_of_another_tenant',
    'marker, and results of the driver': 'text_that_commits_and_begins',
    'versions of loaded rows': 'moved_before_the_flush',
    'objects from elsewhere': 'brought_from_elsewhere',
}


@pytest.mark.parametrize('name', SCENARIOS)
def test_race(world: World, name: str) -> None:
    """With all guards, the race does no harm."""
    assert list(SCENARIOS[name](world)) == []


@pytest.mark.parametrize('guard', MUTANTS)
def test_guard_is_needed(world: World, guard: str) -> None:
    """Without the guard, the same race does harm."""
    with MUTANTS[guard]():
        found = list(SCENARIOS[NOTICED_BY[guard]](world))
    assert found


def test_write_skew_check_can_be_turned_off(world: World) -> None:
    """With check_write_skew off, both writers commit, as the docs say."""
    original = world.start

    def start(level: str = '', **settings: Any) -> tuple[App, App]:
        return original(level, check_write_skew=False, **settings)

    world.start = start  # type: ignore[method-assign]
    assert list(write_skew(world)) == ['refused: 0 and not 1']


@pytest.mark.parametrize('interrupted', Step)
@pytest.mark.parametrize('level', ['READ COMMITTED', 'REPEATABLE READ'])
def test_interrupt_at_any_step(world: World, level: str, interrupted: Step) -> None:
    """Wherever an interrupt comes, as a worker's timeout does: what was committed is seen,
    what was not is not, and soon values are cached again."""
    writer, reader = world.start(level)
    taken: set[Step] = set()

    def interrupt(step: Step) -> None:
        if step is interrupted and step not in taken:
            taken.add(step)
            raise KeyboardInterrupt
        taken.add(step)

    def work() -> None:
        world.names(reader)
        with writer.request_scope(world.tenant) as scope:
            with scope.session().begin_nested() as savepoint:
                world.rename(scope, 'undone')
                savepoint.rollback()
            world.rename(scope)
            scope.session().commit()
        with writer.request_scope(world.tenant) as scope:
            world.rename(scope, 'refused')
            with before(Step.COMMIT, driver_connection(scope).close):
                with pytest.raises(OperationalError):
                    scope.session().commit()
        with writer.request_scope(world.tenant) as scope:
            engine = writer.session_manager.database.engine(world.tenant)
            event.listen(engine, 'commit', refuse)
            world.rename(scope, 'refused')
            try:
                with pytest.raises(ZeroDivisionError):
                    scope.session().commit()
            finally:
                event.remove(engine, 'commit', refuse)
        for app in reader, writer, reader:
            world.names(app)
        world.redis.client().flushall()
        for app in reader, writer, reader:
            app.orm_cache.settler._asked.clear()
            world.names(app)

    outer, steps.listener = steps.listener, interrupt
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        steps.listener = outer
    if interrupted not in taken:
        pytest.skip(f'the step {interrupted!r} is not taken under {level}')
    with writer.request_scope(world.tenant) as scope:
        truth = [row.name for row in scope.session().query(User.name)]
    for app in reader, writer:
        assert world.names(app) == truth
    for _ in range(5):
        for app in reader, writer:
            app.orm_cache.settler._asked.clear()
            assert world.names(app) == truth
    ran = App.runs.count('names')
    for app in reader, writer:
        assert world.names(app) == truth
    assert App.runs.count('names') == ran


def refuse(connection: Any) -> None:
    raise ZeroDivisionError('a handler of somebody else')
