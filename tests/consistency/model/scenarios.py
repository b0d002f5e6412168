"""The small cases that are explored, and what they are made of: guards, events, programs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Guard(StrEnum):
    """A check of the protocol that prevents a violation; the model can leave each of them out."""

    DOUBT = 'doubt'
    CHANGE_FIRST = 'doubt after the first change'
    ANSWER = 'answer before COMMIT'
    CHECK_ON_FILL = 'stamp check on fill'
    CHECK_ON_READ = 'stamp check on read'
    SHARED_FIRST = 'process tier only after the shared one'
    SNAPSHOT_FIRST = 'snapshot before view'
    SECOND_SNAPSHOT = 'second snapshot'
    OWN_CHANGES = 'own-change bypass'
    TIER_ENDS = 'request tier ended by commit'
    UNKNOWN_OUTCOME = 'unknown outcome left to settling'
    SETTLING = 'settling'
    SAVEPOINT_DROP = 'savepoint drop'
    QUARANTINE = 'quarantine'
    NEW_BIRTH = 'new birth at the end of the quarantine'
    RUN_ID = 'run_id'
    FRESH_EPOCHS = 'fresh epochs'
    FRESH_TOKENS = 'a new token for each attempt of a script'
    IDENTITY = 'identity'
    ASKING_AGAIN = 'asking again after a new identity'


class World(StrEnum):
    """An event at a scope or at the store that is no step of the code."""

    REQUEST_TIER = 'is answered by its request tier'
    RETURN = 'returns what its creator made'
    CHANGE = 'changes a row'
    END = 'ends its transaction'
    CONFLICT = 'fails with a retryable conflict'
    REFUSED = 'its COMMIT is refused'
    ROLLED_BACK = 'rolls back before its COMMIT'
    TWICE = 'sends its doubt on a connection that breaks, and again'
    DOUBT_ARRIVES = 'its doubt arrives'
    VERSIONS_ARRIVE = 'its new versions arrive'
    VERSIONS_LOST = 'its new versions are lost'
    LOST = 'the answer to its COMMIT is lost'
    DIED = 'dies'
    UNHEARD_COMMIT = 'the server commits it, unheard'
    UNHEARD_ABORT = 'the server aborts it, unheard'
    ASK = 'asks which writers are in progress'
    LOSS = 'the store forgets'
    DUMP = 'the store saves a dump'
    RESTORE = 'the store is restarted from the dump'
    REPLACED = 'the database is replaced by another one'


@dataclass(frozen=True)
class Program:
    """The operations of a request scope, and the process in which it runs."""

    operations: tuple[str, ...]
    process: int = 0
    #: True if its transactions keep one view (REPEATABLE READ).
    lasts: bool = False
    #: True if it starts only after all others have ended, so that it gets no help from them.
    late: bool = False


@dataclass(frozen=True)
class Scenario:
    """A small case, and the guards that it shows to be needed."""

    name: str
    programs: tuple[Program, ...]
    shows: tuple[Guard, ...] = ()
    #: The outcomes that a COMMIT may have, besides success.
    outcomes: frozenset[World] = frozenset()
    #: The events that may happen to the store or the database.
    store: frozenset[World] = frozenset()
    #: True if processes remember the snapshot of an epoch.
    epochs: bool = False
    #: True if doubts and new versions take their time to the store.
    travels: bool = False


WRITER = Program(('change', 'commit'))
READER = Program(('read A',))
ELSEWHERE = Program(('read A',), process=1)
TWO = Program(('read A', 'read B'))
LATE = Program(('read A', 'end', 'read A'), late=True)
KEEPING = Program(('read A',), lasts=True)

SCENARIOS = (
    Scenario(
        'one writer, readers in two processes',
        (WRITER, READER, READER, ELSEWHERE),
        (Guard.DOUBT, Guard.CHECK_ON_READ),
        frozenset({World.REFUSED}),
    ),
    Scenario(
        'two properties of one tag',
        (WRITER, TWO, TWO),
        (Guard.CHECK_ON_FILL, Guard.SHARED_FIRST),
    ),
    Scenario(
        'two writers',
        (WRITER, WRITER, READER, READER),
        (Guard.DOUBT, Guard.CHECK_ON_READ),
    ),
    Scenario(
        'a view per transaction',
        (WRITER, KEEPING, Program(('begin', 'read A'), lasts=True)),
        (Guard.SNAPSHOT_FIRST,),
    ),
    Scenario(
        'a view that is taken after a cached value',
        (WRITER, KEEPING, Program(('read A', 'begin', 'read B'), lasts=True)),
        (Guard.SNAPSHOT_FIRST, Guard.SECOND_SNAPSHOT),
    ),
    Scenario(
        'a writer that reads before and after its change',
        (
            Program(('read A', 'change', 'read A', 'undo', 'read A', 'commit')),
            Program(('read A', 'end', 'read A')),
            ELSEWHERE,
        ),
        (Guard.OWN_CHANGES, Guard.SAVEPOINT_DROP),
        frozenset({World.REFUSED}),
    ),
    Scenario(
        'a writer with one view that rolls back',
        (Program(('change', 'read A', 'end', 'read A'), lasts=True), WRITER, READER),
        (Guard.OWN_CHANGES, Guard.TIER_ENDS),
    ),
    Scenario(
        'two transactions in a scope',
        (WRITER, Program(('read A', 'end', 'read A')), READER),
        (Guard.TIER_ENDS,),
    ),
    Scenario(
        'writers that die, and answers that are lost',
        (WRITER, READER, ELSEWHERE, LATE),
        (Guard.UNKNOWN_OUTCOME, Guard.SETTLING),
        frozenset({World.REFUSED, World.LOST, World.DIED}),
    ),
    Scenario(
        'a store that forgets',
        (WRITER, READER, READER),
        (Guard.QUARANTINE, Guard.NEW_BIRTH, Guard.CHECK_ON_FILL, Guard.DOUBT),
        frozenset({World.LOST}),
        frozenset({World.LOSS}),
    ),
    Scenario(
        'a store that forgets, and a view per transaction',
        (WRITER, KEEPING, KEEPING),
        (Guard.QUARANTINE,),
        store=frozenset({World.LOSS}),
    ),
    Scenario(
        'a store that forgets, and a writer that dies',
        (WRITER, READER, LATE),
        (Guard.SETTLING,),
        frozenset({World.LOST, World.DIED}),
        frozenset({World.LOSS}),
    ),
    Scenario(
        'a store that comes back from an older dump',
        (WRITER, READER, ELSEWHERE),
        (Guard.RUN_ID,),
        store=frozenset({World.DUMP}),
    ),
    Scenario(
        'processes that know the epoch',
        (WRITER, READER, READER, ELSEWHERE),
        (Guard.FRESH_EPOCHS,),
        epochs=True,
    ),
    Scenario(
        'a script that runs twice',
        (
            Program(('change', 'commit, heard late')),
            WRITER,
            Program(('read A', 'end', 'read A')),
        ),
        (Guard.FRESH_TOKENS,),
    ),
    Scenario(
        'doubts that travel',
        (WRITER, READER, ELSEWHERE),
        (Guard.DOUBT, Guard.CHANGE_FIRST, Guard.ANSWER),
        frozenset({World.REFUSED, World.LOST, World.DIED, World.TWICE}),
        frozenset({World.LOSS}),
        travels=True,
    ),
    Scenario(
        'new versions that nobody waits for',
        (Program(('change', 'commit', 'read A')), READER, ELSEWHERE, READER),
        (Guard.DOUBT, Guard.CHECK_ON_READ),
        frozenset({World.VERSIONS_LOST}),
        travels=True,
    ),
    Scenario(
        'new versions that arrive after those of another writer',
        (WRITER, WRITER, Program(('read A', 'end', 'read A'))),
        (Guard.DOUBT, Guard.CHECK_ON_READ),
        frozenset({World.VERSIONS_LOST}),
        travels=True,
    ),
    Scenario(
        'new versions that are lost, and a reader that comes late',
        (WRITER, READER, ELSEWHERE, LATE),
        (Guard.SETTLING,),
        frozenset({World.VERSIONS_LOST, World.DIED}),
        travels=True,
    ),
    Scenario(
        'a database that is replaced',
        (WRITER, Program(('read A', 'end', 'read A')), ELSEWHERE),
        (Guard.IDENTITY, Guard.ASKING_AGAIN),
        store=frozenset({World.REPLACED}),
    ),
)
