"""The model of the protocol: nothing breaks with all guards, something without any one.

The states that were walked, and the shortest way to each broken promise, are printed:
``pytest -s``, or ``python -m tests.consistency.model`` for all at once.
"""

from __future__ import annotations

import pytest

from onegov_ormcache.steps import Step

from .model import LEFT_OUT, SCENARIOS, Guard, Scenario, explore

#: What the first word of a result may be, by the guard that was removed.
BREAKS: dict[Guard, set[str]] = {
    Guard.DOUBT: {'P1'},
    Guard.CHANGE_FIRST: {'P1'},
    Guard.ANSWER: {'P1'},
    Guard.CHECK_ON_FILL: {'P1', 'P4'},
    Guard.CHECK_ON_READ: {'P1'},
    Guard.SHARED_FIRST: {'P4'},
    Guard.SNAPSHOT_FIRST: {'P1'},
    Guard.SECOND_SNAPSHOT: {'P4'},
    Guard.OWN_CHANGES: {'P2', 'P3'},
    Guard.TIER_ENDS: {'P1', 'P2'},
    Guard.UNKNOWN_OUTCOME: {'P1'},
    Guard.SETTLING: {'liveness'},
    Guard.SAVEPOINT_DROP: {'P2'},
    Guard.QUARANTINE: {'P1'},
    Guard.NEW_BIRTH: {'P1'},
    Guard.RUN_ID: {'P1'},
    Guard.FRESH_EPOCHS: {'P1'},
    Guard.FRESH_TOKENS: {'P1'},
    Guard.IDENTITY: {'P1'},
    Guard.ASKING_AGAIN: {'P1'},
}

MUTANTS = [(scenario, guard) for scenario in SCENARIOS for guard in scenario.shows]

#: The steps that the explorations of this run have taken.
taken: set[Step] = set()


@pytest.mark.parametrize('scenario', SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_order_breaks_the_promise(scenario: Scenario) -> None:
    """With all guards, no order of the steps breaks the promise."""
    result = explore(scenario)
    taken.update(result.steps)
    print(f'{scenario.name}: {result.states} states, {result.broken or "all hold"}')
    assert result.broken is None, ' | '.join(result.way)
    assert result.states > 1000


@pytest.mark.parametrize(
    ('scenario', 'guard'), MUTANTS, ids=[f'{scenario.name}-{guard}' for scenario, guard in MUTANTS]
)
def test_every_guard_is_needed(scenario: Scenario, guard: Guard) -> None:
    """Without the guard some order breaks the promise, and the shortest is found."""
    result = explore(scenario, guard)
    print(f'{scenario.name}, without {guard}: {result.states} states, {result.broken}')
    print('    ' + ' | '.join(result.way))
    assert result.broken is not None
    assert result.broken.split(':')[0] in BREAKS[guard]


def test_every_guard_has_a_scenario() -> None:
    """No guard is left whose removal nobody would notice."""
    assert {guard for _, guard in MUTANTS} == set(Guard)


def test_every_step_of_the_code_is_in_the_model() -> None:
    """The model takes every step that the code names, or says why it does not."""
    if not taken:  # this test runs alone
        for scenario in SCENARIOS:
            taken.update(explore(scenario).steps)
    assert taken | LEFT_OUT.keys() == set(Step)
    assert not taken & LEFT_OUT.keys()
