"""A short run of the random workload at each isolation level; longer ones by hand."""

from __future__ import annotations

import pytest

from tests.consistency.history import LEVELS, Plan, run

#: Seconds of a run, and of another one on a machine that was too busy for the first.
SECONDS = 12, 60


@pytest.mark.timeout(300)
@pytest.mark.parametrize('isolation', LEVELS)
def test_nothing_is_stale_whatever_happens_in_between(postgres_dsn: str, isolation: str) -> None:
    """Processes that are killed, a store that is lost, connections that are cut: the
    promise holds, and the run was one in which it could have been broken."""
    for seconds in SECONDS:
        outcome = run(Plan(isolation=isolation, seconds=seconds), postgres_dsn)
        report = outcome.report
        assert not report.violations, '\n'.join(map(str, report.violations[:3]))
        if outcome.operations > 200 and report.counts['committed'] > 20:
            break
    assert outcome.operations > 200
    assert report.counts['committed'] > 20
    assert report.cached > 5
    # without a cache, a read takes 1.5 runs on average: those that are made of others take three
    assert outcome.creator_runs < 1.2 * report.judged, 'the cache saves work'
    assert outcome.broken['kill'] > 0
    assert outcome.broken['store flushed'] > 0
    assert outcome.broken['connection to database'] > 0
    assert report.counts['quiet'] == 36, 'every property of every tenant is cached again'
