"""The checker finds each kind of violation in a small history, and accepts what is right."""

from __future__ import annotations

from typing import Any

import pytest

from onegov_ormcache.statistics.rates import upper_bound
from tests.consistency.checker import check
from tests.consistency.events import Event, events_of
from tests.consistency.transactions import Written

RC, RR, SERIALIZABLE = 'READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE'


class History:
    """A history of one tenant, written down operation by operation; each takes 10 ns."""

    def __init__(self) -> None:
        self.now = 0
        self.events: list[Event] = []
        self.journal = [Written('a', 0, 'a0'), Written('b', 0, 'b0')]
        self.undecided: dict[str, dict[str, str]] = {}

    def add(self, kind: str, transaction: str, **fields: Any) -> None:
        self.now += 10
        self.events.append(Event(kind, transaction, self.now, **fields))

    def begin(self, *transactions: str) -> None:
        for transaction in transactions:
            self.add('begin', transaction, tenant='town')
            self.undecided[transaction] = {}

    def read(self, transaction: str, kind: str = 'read', cached: bool = True, **rows: str) -> None:
        seen = {row: (0, value) for row, value in rows.items()}
        self.add(kind, transaction, until=self.now + 15, rows=seen, name='prop', cached=cached)

    def direct(self, transaction: str, **rows: str) -> None:
        self.read(transaction, 'direct', False, **rows)

    def write(self, transaction: str, **rows: str) -> None:
        self.add('write', transaction, rows={row: (0, value) for row, value in rows.items()})
        self.undecided[transaction].update(rows)

    def undo(self, transaction: str, **rows: str) -> None:
        self.add('undo', transaction, rows={row: (0, value) for row, value in rows.items()})
        for row in rows:
            del self.undecided[transaction][row]

    def has(self, **rows: str) -> None:
        """Write into the journal that the database has committed these values."""
        for row, value in rows.items():
            version = sum(written.row == row for written in self.journal)
            self.journal.append(Written(row, version, value))

    def send(self, transaction: str) -> None:
        self.add('commit', transaction)

    def commit(self, *transactions: str) -> None:
        for transaction in transactions:
            self.send(transaction)
            self.has(**self.undecided[transaction])
            self.add('committed', transaction)

    def committed(self, transaction: str, **rows: str) -> None:
        """A whole transaction that writes these rows."""
        self.begin(transaction)
        self.write(transaction, **rows)
        self.commit(transaction)

    def promises(self, isolation: str = RC) -> list[str]:
        """Return the promises that the checker finds broken."""
        report = check(self.events, {'town': self.journal}, isolation)
        return [violation.promise for violation in report.violations]


@pytest.fixture
def history() -> History:
    return History()


# P1: nothing older than the last commit that had returned


def test_old_value_after_commit(history: History) -> None:
    """A transaction that begins after a commit must see it."""
    history.committed('w', a='a1')
    history.begin('r')
    history.read('r', a='a0')
    assert history.promises() == ['P1']


def test_new_value_after_commit(history: History) -> None:
    """Seeing the commit is right, from the cache or from a creator."""
    history.committed('w', a='a1')
    history.begin('r')
    history.read('r', a='a1', b='b0')
    history.read('r', cached=False, a='a1')
    assert history.promises(SERIALIZABLE) == []


def test_old_value_beside_commit(history: History) -> None:
    """Before COMMIT has returned, old and new are right."""
    history.begin('w', 'early')
    history.write('w', a='a1')
    history.send('w')
    history.has(a='a1')
    history.begin('old', 'new')
    history.read('old', a='a0')
    history.read('new', a='a1')
    history.add('committed', 'w')
    history.read('early', a='a0')
    assert history.promises(SERIALIZABLE) == []


def test_unheard_commit_shown_by_a_later_one(history: History) -> None:
    """A commit whose answer was lost counts as returned once a later commit of the same row has
    returned: the value before both is then too old."""
    history.begin('lost', 'w')
    history.write('lost', a='a1')
    history.send('lost')
    history.has(a='a1')
    history.write('w', a='a2')
    history.commit('w')
    history.begin('r')
    history.read('r', a='a0')
    assert history.promises() == ['P1']


def test_missing_row(history: History) -> None:
    """A value that lacks a row of its property breaks P1."""
    history.begin('r')
    history.add('read', 'r', name='prop', missing=['b'])
    assert history.promises() == ['P1']


# P6: a dead writer gives no stale hit


def test_old_value_after_it_was_seen_to_be_old(history: History) -> None:
    """If a writer has died after its COMMIT, a transaction must see the new value if it begins
    after another one has seen it."""
    history.begin('dead', 'beside')
    history.write('dead', a='a1')
    history.send('dead')
    history.has(a='a1')
    history.begin('seer')
    history.direct('seer', a='a1')
    history.now += 100
    history.read('beside', a='a0')
    assert history.promises(SERIALIZABLE) == []
    history.begin('r')
    history.read('r', a='a0')
    assert history.promises() == ['P6']


# P2: nothing uncommitted


@pytest.mark.parametrize('end', ['rolled back', 'failed', 'killed'])
def test_value_of_an_aborted_transaction(history: History, end: str) -> None:
    """A value that was never committed must not be seen by another transaction."""
    history.begin('w', 'r')
    history.write('w', a='a1')
    if end != 'killed':
        history.add(end, 'w')
    history.read('r', a='a1')
    assert history.promises() == ['P2']


@pytest.mark.parametrize('happened', [True, False])
def test_value_of_a_commit_that_was_lost(history: History, happened: bool) -> None:
    """The value of a COMMIT without an answer may be seen only if the database has it."""
    history.begin('w')
    history.write('w', a='a1')
    history.send('w')
    history.add('failed', 'w')
    if happened:
        history.has(a='a1')
    history.begin('r', 'other')
    history.read('r', a='a1')
    history.read('other', a='a0')
    assert history.promises(SERIALIZABLE) == ([] if happened else ['P2'])


def test_value_before_its_commit(history: History) -> None:
    """A value that is committed later must not be seen earlier."""
    history.begin('w', 'r')
    history.write('w', a='a1')
    history.read('r', a='a1')
    history.now += 100
    history.commit('w')
    assert history.promises() == ['P2']


def test_value_between_two_of_one_transaction(history: History) -> None:
    """If a transaction writes a row twice, others must see only the second value."""
    history.begin('w')
    history.write('w', a='a1')
    history.write('w', a='a2')
    history.send('w')
    history.has(a='a1')
    history.has(a='a2')
    history.add('committed', 'w')
    history.begin('r')
    history.read('r', a='a2')
    assert history.promises() == []
    history.read('r', a='a1')
    assert history.promises() == ['P2']


def test_value_of_a_lost_savepoint(history: History) -> None:
    """A value that a savepoint's rollback undid must not be seen, not even by its own
    transaction."""
    history.begin('w')
    history.write('w', a='a1')
    history.read('w', cached=False, a='a1')
    history.undo('w', a='a1')
    history.read('w', a='a0')
    assert history.promises() == []
    history.write('w', b='b1')
    history.write('w', b='b2')
    history.add('undo', 'w', rows={'b': (0, 'b2')})
    history.read('w', cached=False, b='b2')
    assert history.promises() == ['P2']
    history.begin('r')
    history.read('r', a='a1')
    assert history.promises() == ['P2', 'P2']


def test_value_of_another_tenant(history: History) -> None:
    """A value of another tenant was never committed in this one."""
    history.begin('r')
    history.read('r', a='elsewhere')
    assert history.promises() == ['P2']


def test_commit_without_effect(history: History) -> None:
    """If a COMMIT has returned, the database must have its values."""
    history.begin('w')
    history.write('w', a='a1')
    history.send('w')
    history.add('committed', 'w')
    assert history.promises() == ['P2']


@pytest.mark.parametrize('kind', ['rolled back', 'failed', 'killed'])
def test_effect_without_commit(history: History, kind: str) -> None:
    """The database must have no values of a transaction that was rolled back or sent no COMMIT."""
    history.begin('w')
    history.write('w', a='a1')
    if kind != 'killed':
        history.add(kind, 'w')
    history.has(a='a1')
    assert history.promises() == ['P2']


# P3: own changes


def test_own_change_not_seen(history: History) -> None:
    """A transaction sees what it has written, and not what was there before."""
    history.begin('w')
    history.write('w', a='a1')
    history.read('w', cached=False, a='a1', b='b0')
    assert history.promises() == []
    history.read('w', a='a0')
    assert history.promises() == ['P3']


# P4: one snapshot


@pytest.mark.parametrize(('level', 'found'), [(RC, ['P4']), (RR, ['P4']), (SERIALIZABLE, ['P4'])])
def test_half_of_a_transaction(history: History, level: str, found: list[str]) -> None:
    """If two rows come from the cache and one transaction wrote both, both are new or neither."""
    history.begin('r', 'w')
    history.write('w', a='a1', b='b1')
    history.read('r', a='a0')
    history.send('w')
    history.has(a='a1', b='b1')
    history.read('r', b='b1')
    assert history.promises(level) == found


def test_half_of_a_transaction_from_the_database(history: History) -> None:
    """Under READ COMMITTED a later statement may see newer rows in the database; under REPEATABLE
    READ that is a violation."""
    history.begin('r')
    history.read('r', cached=False, a='a0')
    history.committed('w', a='a1', b='b1')
    history.read('r', cached=False, b='b1')
    history.direct('r', a='a1', b='b1')
    assert history.promises(RC) == []
    assert history.promises(RR) == ['P4']


def test_new_beside_old(history: History) -> None:
    """A transaction that sees a commit must see all commits that had returned before that one was
    sent."""
    history.begin('r')
    history.committed('w', a='a1')
    history.committed('v', b='b1')
    history.read('r', a='a0', b='b1')
    assert history.promises() == ['P4']


def test_old_beside_new(history: History) -> None:
    """A snapshot between two commits has only the first of them."""
    history.begin('r')
    history.committed('w', a='a1')
    history.read('r', a='a1', b='b0')
    history.committed('v', b='b1')
    history.read('r', b='b0')
    assert history.promises(SERIALIZABLE) == []


@pytest.mark.parametrize(('level', 'found'), [(RC, []), (RR, ['P4'])])
def test_cache_and_database_differ(history: History, level: str, found: list[str]) -> None:
    """If a transaction keeps one view, a cached value must be what the view would give."""
    history.begin('r')
    history.read('r', a='a0')
    history.committed('w', a='a1')
    history.direct('r', a='a1')
    assert history.promises(level) == found


# P5: write skew


def skew(history: History, cached: bool = True) -> None:
    history.begin('one', 'other')
    history.read('one', cached=cached, b='b0')
    history.read('other', a='a0')
    history.write('one', a='a1')
    history.write('other', b='b1')


@pytest.mark.parametrize('cached', [True, False])
def test_write_skew(history: History, cached: bool) -> None:
    """Two SERIALIZABLE transactions that each read what the other one writes must not both
    commit."""
    skew(history, cached)
    history.commit('one', 'other')
    assert history.promises(SERIALIZABLE) == ['P5']
    assert history.promises(RR) == [], 'it promises nothing of the kind'


def test_write_skew_prevented(history: History) -> None:
    """If one of the two fails, the other one may commit."""
    skew(history)
    history.commit('one')
    history.send('other')
    history.add('rolled back', 'other')
    assert history.promises(SERIALIZABLE) == []


def test_one_after_the_other(history: History) -> None:
    """Both may commit if the second has seen the first one's write."""
    history.begin('one')
    history.read('one', b='b0')
    history.write('one', a='a1')
    history.commit('one')
    history.begin('other')
    history.read('other', a='a1')
    history.write('other', b='b1')
    history.commit('other')
    assert history.promises(SERIALIZABLE) == []


# the rest


@pytest.mark.parametrize(('kind', 'promise'), [('never', 'liveness'), ('error', 'error')])
def test_remarks(history: History, kind: str, promise: str) -> None:
    """A property that stays uncached and an error that nobody expects are found."""
    history.add('quiet', '', name='prop')
    assert history.promises() == []
    history.add(kind, '', name='prop')
    assert history.promises() == [promise]


def test_a_violation_shows_its_events(history: History) -> None:
    """A violation names what was seen, when, and by whom the newer value was written."""
    history.committed('w', a='a1')
    history.begin('r')
    history.read('r', a='a0')
    (violation,) = check(history.events, {'town': history.journal}, RC).violations
    assert {event.transaction for event in violation.events} == {'w', 'r'}
    assert "'a0'" in str(violation)
    assert "'a1'" in str(violation)


def test_lines() -> None:
    """An event is one line; a line that was cut off by a kill is ignored."""
    event = Event('read', 't', 1, rows={'a': (0, 'a0')}, cached=True)
    lines = [event.line(), event.line()[:-5]]
    (read,) = events_of(lines)
    assert (read.kind, read.at, read.cached) == ('read', 1, True)
    assert [*read.rows['a']] == [0, 'a0']


@pytest.mark.parametrize(
    ('violations', 'trials', 'bound'),
    [(0, 100, 0.0295), (0, 100_000, 2.9957e-5), (1, 100, 0.0466), (5, 1000, 0.01048), (0, 0, 1)],
)
def test_upper_bound(violations: int, trials: int, bound: float) -> None:
    """The bounds of Clopper and Pearson, to three digits."""
    assert upper_bound(violations, trials) == pytest.approx(bound, rel=2e-3)
