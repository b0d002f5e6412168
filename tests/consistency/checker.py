"""Checks a recorded history against the promises, and against nothing else.

The checker knows the rows, the transactions that wrote and read them, when each of their
operations began and returned, and what the database says was committed. It knows nothing
of tags, stamps or doubts: it accepts every history that keeps the promises, and finds what
breaks them.

Every write gives its row a value that no other write gives, so a value shows which write it
comes from. The database numbers the writes of a row. So each state of a row that a
transaction saw has a first and a last moment. The first is when the COMMIT of its writer was
sent. The last is when the COMMIT of the next writer had returned, or when somebody had seen
what that one wrote, whichever came first. A snapshot is a moment that lies between the two
for all rows.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.consistency.events import Event
from tests.consistency.transactions import NOBODY, Row, State, Transaction, Written


class Violation(NamedTuple):
    """The promise is broken, and these events show it."""

    #: P1 to P6 as the promises are numbered, or 'liveness', or 'error'.
    promise: str
    text: str
    events: Sequence[Event]

    def __str__(self) -> str:
        shown = [f'{self.promise}: {self.text}']
        shown += [f'    {event.line().decode().strip()}' for event in self.events]
        return '\n'.join(shown)


class Report(NamedTuple):
    """The result of the checker."""

    violations: list[Violation]
    #: The number of events of each kind.
    counts: Counter[str]
    #: How many values of properties were checked, and how many of them came from a cache.
    judged: int
    cached: int


def check(
    events: Iterable[Event], journal: Mapping[str, Sequence[Written]], isolation: str
) -> Report:
    """Check a history.

    :param events: of all processes; those of one transaction in their own order.
    :param journal: by tenant: all writes that the database has committed, including the
        first ones, which no transaction of the history wrote.
    :param isolation: the isolation level at which all transactions ran.
    """
    return _Checker(journal, isolation).check(events)


class _Checker:
    def __init__(self, journal: Mapping[str, Sequence[Written]], isolation: str) -> None:
        self.journal = journal
        self.isolation = isolation
        self.transactions: dict[str, Transaction] = {}
        self.rows: dict[tuple[str, str], Row] = {}
        self.writers: dict[str, Transaction] = {}
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()

    def check(self, events: Iterable[Event]) -> Report:
        events = list(events)
        remarks = self._sort(events)
        self._order_states()
        for event in remarks:
            if event.kind == 'error':
                self._found('error', event.name, event)
            elif event.kind == 'never':
                text = f'{event.tenant}: {event.name} is not cached again when all is quiet'
                self._found('liveness', text, event)
        for transaction in self.transactions.values():
            self._check_outcome(transaction)
            own = Transaction(transaction.name, transaction.tenant, transaction.began)
            for event in transaction.events:
                own.take(event)
                if event.kind in ('read', 'direct'):
                    self._check_values(transaction, own, event)
        self._show_states()
        for transaction in self.transactions.values():
            self._check_age(transaction)
            self._check_snapshot(transaction)
        if self.isolation == 'SERIALIZABLE':
            self._check_write_skew()
        reads = [event for event in events if event.kind == 'read']
        cached = sum(event.cached for event in reads)
        return Report(self.violations, self.counts, len(reads), cached)

    def _found(self, promise: str, text: str, *events: Event) -> None:
        self.violations.append(Violation(promise, text, events))

    def _sort(self, events: Iterable[Event]) -> list[Event]:
        """Give each transaction its events; return the events of kind 'error' and 'never'."""
        remarks = []
        for event in events:
            self.counts[event.kind] += 1
            if event.kind == 'begin':
                self.transactions[event.transaction] = Transaction(
                    event.transaction, event.tenant, event.at
                )
            transaction = self.transactions.get(event.transaction)
            if transaction is not None:
                transaction.take(event)
            if event.kind in ('error', 'never'):
                remarks.append(event)
        for transaction in self.transactions.values():
            for event in transaction.events:
                if event.kind == 'write':
                    for _, value in event.rows.values():
                        self.writers[value] = transaction
        return remarks

    def _order_states(self) -> None:
        for tenant, written in self.journal.items():
            nobody = Transaction(NOBODY, tenant, 0, sent=-math.inf, returned=-math.inf)
            by_row = defaultdict(list)
            for row, version, value in sorted(written):
                by_row[row].append(State(version, value, self.writers.get(value, nobody)))
            for row, states in by_row.items():
                # if one transaction writes a row several times, others see only the last write
                last = [
                    state
                    for state, following in zip(states, [*states[1:], None], strict=True)
                    if following is None
                    or following.writer is not state.writer
                    or state.writer is nobody
                ]
                self.rows[tenant, row] = Row(last)

    # the outcome of a transaction

    def _check_outcome(self, transaction: Transaction) -> None:
        """Check that the database has what the transaction committed, and nothing else of it."""
        for row, values in transaction.own.items():
            states = self.rows.get((transaction.tenant, row))
            has = states is not None and bool(values) and values[-1] in states.number
            if transaction.returned < math.inf and values and not has:
                text = f'COMMIT has returned, and the database does not have {values[-1]!r}'
            elif has and transaction.failed:
                text = f'rolled back, and the database has {values[-1]!r}'
            elif has and transaction.sent == math.inf:
                text = f'no COMMIT was sent, and the database has {values[-1]!r}'
            else:
                continue
            self._found('P2', f'{transaction.name}: {text}', *transaction.events)

    # P1, P2, P3: one value

    def _check_values(self, transaction: Transaction, own: Transaction, event: Event) -> None:
        if event.missing:
            text = f'{event.name} has no {", ".join(event.missing)}'
            self._found('P1', text, transaction.events[0], event)
        for row, (_, value) in event.rows.items():
            if values := own.own[row]:
                if value != values[-1]:
                    promise = 'P2' if value in own.undone else 'P3'
                    text = f'{event.name} shows {row} as {value!r}, not as the own {values[-1]!r}'
                    self._found(promise, text, *transaction.events)
                continue
            number = self._committed(transaction, event, row, value)
            if number is not None:
                transaction.seen.append((event, row, number))

    def _committed(
        self, transaction: Transaction, event: Event, row: str, value: str
    ) -> int | None:
        """Return the number of the state that was seen; report a value that could not be seen, and
        return None."""
        states = self.rows.get((transaction.tenant, row))
        number = states.number.get(value) if states is not None else None
        writer = self.writers.get(value)
        if states is None or number is None:
            text = f'{event.name} shows {row} as {value!r}, which was never committed'
        elif states.states[number].writer.sent > event.until:
            text = f'{event.name} shows {row} as {value!r} before its COMMIT was sent'
        else:
            return number
        self._found('P2', text, *transaction.events, *(writer.events if writer else ()))
        return None

    # P1, P6: the age of a value

    def _show_states(self) -> None:
        """Record that each state that was seen had been committed by then, even if its writer
        has died."""
        shown: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for transaction in self.transactions.values():
            for event, row, number in transaction.seen:
                shown[transaction.tenant, row].append((number, event.until))
        for key, seen in shown.items():
            self.rows[key].show(seen)

    def _check_age(self, transaction: Transaction) -> None:
        """Check that no value is older than the last commit that had returned, or that others had
        seen, when the transaction began."""
        for event, row, number in transaction.seen:
            states = self.rows[transaction.tenant, row]
            if states.gone[number] >= transaction.began:
                continue
            late = states.after(number)
            assert late is not None
            promise, how = 'P1', 'a COMMIT had returned'
            if states.replaced[number] >= transaction.began:
                promise, how = 'P6', 'another transaction had seen it'
            text = (
                f'{event.name} shows {row} as {states.states[number].value!r}, and not as '
                f'{late.value!r} or later, {(transaction.began - states.gone[number]) / 1e6:.3f} '
                f'ms after {how}'
            )
            self._found(promise, text, *transaction.events, *late.writer.events)
            return

    # P4: one snapshot

    def _check_snapshot(self, transaction: Transaction) -> None:
        """Check that all values that must be of one snapshot have a moment in common."""
        lasting = self.isolation != 'READ COMMITTED'
        seen = [
            entry
            for entry in transaction.seen
            if lasting or (entry[0].kind == 'read' and entry[0].cached)
        ]
        first = last = None
        begin, end = float(transaction.began), math.inf
        states_seen: dict[str, int] = {}
        for entry in seen:
            _, row, number = entry
            states = self.rows[transaction.tenant, row]
            if states_seen.setdefault(row, number) != number:
                text = f'{row} has two states in one transaction'
                self._found('P4', text, *transaction.events)
                return
            if (sent := states.states[number].writer.sent) > begin:
                begin, last = sent, entry
            if (gone := states.gone[number]) < end:
                end, first = gone, entry
        if begin > end and first is not None and last is not None:
            old, new = self.rows[transaction.tenant, first[1]], last
            late = old.after(first[2])
            assert late is not None
            text = (
                f'{first[1]} as it was before {late.value!r}, with {new[1]} as it was '
                f'{(begin - end) / 1e6:.3f} ms later'
            )
            self._found('P4', text, *transaction.events, *late.writer.events)
            return
        self._check_whole(transaction, states_seen)

    def _check_whole(self, transaction: Transaction, seen: Mapping[str, int]) -> None:
        """Check that of the rows that another transaction wrote, all were seen as it wrote them
        or later, or none."""
        for row, number in seen.items():
            writer = self.rows[transaction.tenant, row].states[number].writer
            for other, other_number in seen.items():
                if other == row or not writer.own.get(other):
                    continue
                states = self.rows[transaction.tenant, other]
                written = states.number.get(writer.own[other][-1])
                if written is not None and other_number < written:
                    text = f'{writer.name} wrote {row} and {other}, and only {row} is seen'
                    self._found('P4', text, *transaction.events, *writer.events)
                    return

    # P5: write skew

    def _check_write_skew(self) -> None:
        """Check all pairs of transactions that each read, through properties, what the other one
        wrote: at least one of the two must have seen the other's write."""
        longest = max(
            (one.sent - one.began for one in self.transactions.values() if one.sent < math.inf),
            default=0,
        )
        for one in filter(self._is_committed, self.transactions.values()):
            found: set[str] = set()
            for event, row, number in one.seen:
                if event.kind != 'read':
                    continue
                for state in self.rows[one.tenant, row].states[number + 1 :]:
                    other = state.writer
                    if other.sent > one.returned + longest:
                        break  # this writer began after `one` returned, and so did all later ones
                    if one.name < other.name and other.name not in found:
                        found.add(other.name)
                        self._check_pair(one, event, other)

    def _is_committed(self, transaction: Transaction) -> bool:
        return any(
            values and values[-1] in self.rows[transaction.tenant, row].number
            for row, values in transaction.own.items()
        )

    def _check_pair(self, one: Transaction, read: Event, other: Transaction) -> None:
        for event, row, number in other.seen:
            if event.kind != 'read' or not one.own.get(row):
                continue
            states = self.rows[one.tenant, row]
            written = states.number.get(one.own[row][-1])
            if written is not None and number < written:
                how = ' and '.join(
                    'cached' if each.cached else 'from a creator' for each in (read, event)
                )
                text = f'{one.name} and {other.name} read what the other one changed ({how})'
                self._found('P5', text, *one.events, *other.events)
                return
