"""A sample of the matrix of reads and writes; the whole of it by hand:

python -m tests.consistency.matrix
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy.exc import SAWarning

from tests.consistency.matrix import running
from tests.consistency.matrix.known import is_known
from tests.consistency.matrix.reads import READS
from tests.consistency.matrix.results import LEVELS, Plan, Report
from tests.consistency.matrix.world import make_world
from tests.consistency.matrix.writes import WRITES
from tests.consistency.mutants import (
    without_changed_rows,
    without_check_on_read,
    without_own_change_bypass,
)

SQLITE = Plan('sqlite', isolation='SQLite')

#: How many writes a sample has on each database; SQLite is faster. A host differs in how a
#: transaction begins and ends, so few writes do.
PLANS = {
    **{level: Plan(isolation=level, sample=10, reads=24, seed=10) for level in LEVELS},
    **{
        f'{level} by a host': Plan(isolation=level, sample=3, reads=16, seed=seed, host=True)
        for level, seed in zip(LEVELS, (1, 3, 6), strict=True)
    },
    'SQLite': replace(SQLITE, sample=40, reads=24, seed=10),
    # values by argument, whose policies are for rows
    **{
        f'rows, {level}': Plan(
            isolation=level, sample=8, reads=20, seed=seed, only_reads='^rows:'
        )
        for level, seed in zip(LEVELS, (1, 2, 3), strict=True)
    },
    'rows by a host': Plan(sample=3, reads=16, seed=4, host=True, only_reads='^rows:'),
    'rows, SQLite': replace(SQLITE, sample=30, reads=24, seed=5, only_reads='^rows:'),
}

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Plan], Report]]:
    """Runs a plan; warnings of SQLAlchemy about odd statements are not of interest."""

    def run_plan(plan: Plan) -> Report:
        dsn, redis_url = '', None
        if plan.database == 'postgresql':
            dsn = request.getfixturevalue('postgres_dsn')
            redis_url = request.getfixturevalue('redis_url')
        with make_world(plan, dsn, redis_url) as world:
            return running.run(world)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore', SAWarning)
        yield run_plan


@pytest.mark.parametrize('name', PLANS)
def test_no_read_is_wrong_after_a_write(run: Callable[[Plan], Report], name: str) -> None:
    """Each read of the sample shows what the database has, whatever the write and its end."""
    report = run(PLANS[name])
    unknown = [failure for failure in report.failures if not is_known(failure)]
    assert not unknown, '\n'.join(map(str, unknown[:5]))
    assert report.combinations > (500 if report.plan.host else 2000)


@pytest.mark.parametrize(
    ('mutant', 'plan', 'kinds'),
    [
        (without_check_on_read, SQLITE, {'stale'}),
        (without_own_change_bypass, SQLITE, {'stale', 'uncommitted'}),
        (without_own_change_bypass, Plan(host=True), {'stale', 'uncommitted'}),
    ],
)
def test_matrix_finds_what_is_wrong(
    run: Callable[[Plan], Report],
    mutant: Callable[[], AbstractContextManager[Any]],
    plan: Plan,
    kinds: set[str],
) -> None:
    """If the package serves values without looking whether they hold, the matrix finds it."""
    plan = replace(plan, only='^flush: update$', only_reads='^orm: (all|get)$')
    assert not run(plan).failures
    with mutant():
        report = run(plan)
    assert {failure.kind for failure in report.failures} == kinds
    assert {failure.read for failure in report.failures} == {'orm: all', 'orm: get'}


def test_matrix_finds_rows_that_are_not_told(run: Callable[[Plan], Report]) -> None:
    """If the package does not tell which rows have changed, the matrix finds it."""
    plan = replace(SQLITE, only='^(flush: update|statement: upsert)$', only_reads='^rows: key$')
    assert not run(plan).failures
    with without_changed_rows():
        report = run(plan)
    assert {(failure.policy, failure.kind) for failure in report.failures} == {
        ('named', 'stale'),
        ('named', 'uncommitted'),
    }
    assert report.pairs().keys() == {
        ('rows: key', 'flush: update'),
        ('rows: key', 'statement: upsert'),
    }


def test_entries_have_names_of_their_own() -> None:
    """No two reads, and no two writes, have the same name."""
    assert len({read.slug for read in READS}) == len(READS) >= 150
    assert len({write.name for write in WRITES}) == len(WRITES) >= 200
