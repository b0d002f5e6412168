"""Runs the matrix: one write, then all reads, in all places, for each ending of the write."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from onegov_ormcache.errors import UnknownSchemaError

from .entries import Read, Write
from .places import (
    POLICIES,
    Key,
    Seen,
)
from .results import Failure, Report
from .schema import ONE, TWO
from .truth import Outcome, values
from .world import World

#: How a write's transaction ends. The one that is committed comes last: only then must the rows
#: be restored.
ENDINGS = ('rolled back', 'savepoint', 'committed')

#: Attempts of a case that a conflict ends.
ATTEMPTS = 4

#: The reads of the second tenant: its tables, and what is read beyond its schema.
NEIGHBOUR = re.compile(r'^orm: all|tenant|^schema:|^path:|shared')

#: The read of what no rollback undoes.
SEQUENCES = re.compile(r'last value')

Values = dict[str, Outcome]


class Expected(NamedTuple):
    """What a write must show, read without a cache."""

    before: Values
    #: What its own transaction sees; None if it ends that transaction itself.
    own: Values | None
    #: The other tenant's values, to know them again.
    foreign: Values


def run(
    world: World, progress: Callable[[Write, Report], None] = lambda write, report: None
) -> Report:
    """Run all writes of a world, or a sample of them.

    :param progress: called after each write.
    """
    writes = world.writes
    if world.plan.sample is not None:
        writes = world.random.sample(writes, min(world.plan.sample, len(writes)))
    for write in writes:
        world.report.writes += 1
        Case(world, write).run()
        progress(write, world.report)
    return world.report


class Case:
    """One write, with all its endings.

    :param world: what the write changes, and where it is read.
    """

    def __init__(self, world: World, write: Write) -> None:
        self.world = world
        self.write = write
        self.report = world.report
        self.ending = ''
        #: Reads that left the writer's transaction unusable.
        self.unreadable: set[str] = set()
        #: True if the database is not as it was before the write.
        self.is_changed = True
        #: True if the places have read everything since the tenants were restored.
        self.is_warm = False

    def run(self) -> None:
        """Run each ending, and add what is found to the report."""
        world, write = self.world, self.write
        own = None if write.ends else values(world.truth, ONE, world.reads, write)
        self.expected = Expected(world.before, own, world.neighbour)
        world.truth.restore()  # a rollback does not undo what sequences have given
        self._check_entry()
        self.reads = self._chosen()
        self.keys = [Key(policy, read.name) for read in self.reads for policy in POLICIES]
        self.own_keys = [
            Key(policy, read.name)
            for read in self.reads
            for policy in POLICIES
            if not read.disturbs
        ]
        self.near = [read for read in self.reads if NEIGHBOUR.search(read.name)]
        self.near_keys = [Key(policy, read.name) for read in self.near for policy in POLICIES]
        for ending in ENDINGS:
            if self.write.ends and ending != 'committed':
                continue  # it has one ending of its own
            self.ending = ending
            self._attempt_ending()
            self.report.combinations += len(self.keys) * len(world.places)
            self.report.combinations += len(self.own_keys) + len(self.near_keys)

    def _attempt_ending(self) -> None:
        """Run one ending; again after a conflict, and without a read that spoils a transaction."""
        conflicts = 0
        while True:
            found = len(self.report.failures)
            try:
                self._run_ending()
            except Unusable:
                self._clean()
            except Conflict as conflict:
                del self.report.failures[found:]
                self._clean()
                conflicts += 1
                if conflicts == ATTEMPTS:
                    self._fail('error', None, 'scope', 'open', None, str(conflict))
                    return
            else:
                if self.is_changed or len(self.report.failures) > found:
                    self._clean()
                else:
                    self.world.truth.restore()
                    self.is_warm = True
                return

    def _clean(self) -> None:
        self.world.clean(self.write.rebuilds)
        self.is_warm = False

    def _check_entry(self) -> None:
        """Raise an error if the write does not change what its entry says."""
        write, own, before = self.write, self.expected.own, self.world.before
        if own is None or self.world.plan.only_reads:
            return
        changed = {name for name in own if not own[name].agrees(before[name])}
        if write.shows and not any(re.search(write.shows, name) for name in changed):
            raise AssertionError(f'{write.name!r} changes no read {write.shows!r}: {changed}')
        if not write.shows and changed and not write.late:
            raise AssertionError(f'{write.name!r} is a control, and changes {changed}')

    def _chosen(self) -> list[Read]:
        """Return the reads of this write: those that it changes, and others as controls."""
        world, own, plan = self.world, self.expected.own, self.world.plan
        changed, others = [], []
        for read in world.reads:
            # what is changed while it commits is not known yet
            may_change = own is None or self.write.late
            if may_change or not own[read.name].agrees(world.before[read.name]):
                changed.append(read)
            else:
                others.append(read)
        controls = plan.controls
        if plan.sample is not None:
            changed = world.random.sample(changed, min(plan.reads // 2, len(changed)))
            controls = plan.reads - len(changed)
        return changed + world.random.sample(others, min(controls, len(others)))

    # one ending

    def _run_ending(self) -> None:
        before = self.expected.before
        if self.ending == 'savepoint':
            # nothing is cached when its own transaction reads first, which must not be stored
            self._clean()
        elif not self.is_warm:
            self._look_beside('before')
        with self.world.program.unit(ONE):
            undone = self._change(self.world.program.session())
            after = self._after(ONE)
            self._compare(self._look_here(after), after, 'scope', 'after')
        near = self._after(TWO)
        self.is_changed = self.ending == 'committed' or not (
            all(after[name].agrees(before[name]) for name in after)
            and all(near[name].agrees(self.expected.foreign[name]) for name in near)
        )
        for place in self.world.places:
            self._compare(place.look(ONE, self.keys), after, place.name, 'after')
        self._compare(self.world.thread.look(TWO, self.near_keys), near, 'neighbour', 'after')
        # a sequence keeps its number when the savepoint is rolled back
        undone = {key: found for key, found in undone.items() if not found.agrees(after[key.read])}
        self._compare(undone, before, 'scope', 'undone')

    def _change(self, session: Session) -> Seen:
        """Write and end the transaction, and read in between.

        :return: what the writer sees after the rollback to the savepoint, if there was one.
        """
        undone: Seen = {}
        with self._failing():
            if self.ending == 'committed':
                before = self.expected.before
                self._compare(self._look_here(before), before, 'scope', 'before')
                self._write(session)
                # the locks of a changed definition would let each read wait
                if not self.write.rebuilds and not self.write.ends:
                    self._look_beside('open')
                session.commit()
            elif self.ending == 'rolled back':
                self._write_and_look(session)
                session.rollback()
            else:
                savepoint = session.begin_nested()
                self._write_and_look(session)
                savepoint.rollback()
                undone = self._look_here(self.expected.before)
                session.commit()
        with self._failing():
            session.rollback()
        return undone

    def _write(self, session: Session) -> None:
        self.write.run(session)
        session.flush()

    def _write_and_look(self, session: Session) -> None:
        self._write(session)
        own = self.expected.own
        assert own is not None, 'a write that ends its transaction has no other ending'
        self._compare(self._look_here(own), own, 'scope', 'open')

    def _look_beside(self, moment: str) -> None:
        """Read in the other places, where nothing of the write may be seen."""
        before, foreign = self.expected.before, self.expected.foreign
        for place in self.world.places:
            self._compare(place.look(ONE, self.keys), before, place.name, moment)
        # also in the writer's own thread, in the middle of its transaction
        for thread in (self.world.thread, self.world.board):
            self._compare(thread.look(TWO, self.near_keys), foreign, 'neighbour', moment)

    def _look_here(self, expected: Values) -> dict[Key, Outcome]:
        """Read in the writer's unit of work.

        Reads that raise an error are left out, as the transaction could not go on; so are reads
        that change something.
        """
        seen: dict[Key, Outcome] = {}
        for key in self.own_keys:
            if expected[key.read].error is not None or key.read in self.unreadable:
                continue
            seen[key] = found = self.world.board.get(key)
            if found.conflict:
                raise Conflict(found.message)
            if found.error is not None and not self._tells_removal(found):
                self.unreadable.add(key.read)
                self._compare({key: found}, expected, 'scope', 'open')
                raise Unusable
        return seen

    def _after(self, tenant: str) -> Values:
        """Return what the tenant shows now, read without a cache."""
        reads = self.reads if tenant == ONE else self.near
        first = self.expected.before if tenant == ONE else self.expected.foreign
        own = self.expected.own
        if own is None or self.write.late or self.ending == 'committed':
            return {**first, **values(self.world.truth, tenant, reads)}
        # a rollback leaves what was, apart from sequences
        may_differ = [
            read
            for read in reads
            if SEQUENCES.search(read.name) or not own[read.name].agrees(first[read.name])
        ]
        return {**first, **values(self.world.truth, tenant, may_differ)}

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Note an error of the write or of its end, unless it is a refusal on purpose."""
        session = self.world.program.session()
        try:
            yield
        except (Conflict, Unusable):
            raise
        except Exception as error:
            kinds = {kind.__name__ for kind in type(error).__mro__}
            kinds.add(type(getattr(error, 'orig', None)).__name__)
            if self.world.program.cache.is_conflict(error):
                raise Conflict(str(error)) from error
            if not kinds & set(self.write.refused):
                self._fail(
                    'error', None, 'scope', 'open', None, f'{type(error).__name__}: {error}'
                )
            try:
                session.rollback()
            except SQLAlchemyError:
                session.invalidate()

    # comparing

    def _compare(self, seen: Seen, expected: Values, place: str, moment: str) -> None:
        for key, found in seen.items():
            self.report.comparisons += 1
            wanted = expected[key.read]
            if found.blocked:
                self.report.blocked += 1
            elif not found.agrees(wanted) and not self._tells_removal(found):
                kind = self._kind(key, found, place)
                self._fail(
                    kind,
                    key,
                    place,
                    moment,
                    wanted.error or wanted.value,
                    f'{found.error}: {found.message}' if found.error else found.value,
                )

    def _tells_removal(self, found: Outcome) -> bool:
        """Return whether a host is told by an error that the write has taken its tenant away."""
        return self.write.removes and found.error == UnknownSchemaError.__name__

    def _kind(self, key: Key, found: Outcome, place: str) -> str:
        own, before, foreign = self.expected.own, self.expected.before, self.expected.foreign
        if place == 'neighbour':
            before, foreign = foreign, before
        if found.error is not None:
            return 'error'
        if found.agrees(before[key.read]):
            return 'stale'
        if found.agrees(foreign[key.read]):
            return 'foreign'
        is_private = self.ending != 'committed' or place != 'scope'
        if is_private and own is not None and found.agrees(own[key.read]):
            return 'uncommitted'
        return 'stale'

    def _fail(
        self, kind: str, key: Key | None, place: str, moment: str, expected: Any, found: Any
    ) -> None:
        self.report.failures.append(
            Failure(
                kind,
                self.write.name,
                self.ending,
                key.read if key else '',
                key.policy if key else '',
                place,
                moment,
                expected,
                found,
            )
        )


class Conflict(Exception):
    """Another transaction is in the way; the case runs again."""


class Unusable(Exception):
    """A read has failed, so that the transaction can't go on; the case runs without it."""
