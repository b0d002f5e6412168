"""What a run of the matrix is to do, and what it has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')


@dataclass(frozen=True)
class Plan:
    """What to run."""

    database: str = 'postgresql'
    isolation: str = LEVELS[0]
    #: How many writes, drawn by the seed; None for all.
    sample: int | None = None
    #: How many reads that a write does not change are looked at beside those that it changes.
    controls: int = 40
    #: How many reads beside each write of a sample.
    reads: int = 40
    seed: int = 0
    #: The writes whose names this finds.
    only: str = ''
    #: The reads whose names this finds.
    only_reads: str = ''
    #: True to read and write by sessions of a host, instead of those of the package.
    host: bool = False


class Failure(NamedTuple):
    """A combination that broke the promise."""

    #: ``'stale'``, ``'uncommitted'``, ``'foreign'`` or ``'error'``.
    kind: str
    write: str
    ending: str
    #: The read, and the policy of its property; '' if the write itself failed.
    read: str
    policy: str
    place: str
    #: When it was read: before the write, while it is open, after a rollback to the savepoint,
    #: or after its end.
    moment: str
    expected: Any
    found: Any


@dataclass
class Report:
    """What a run has found."""

    plan: Plan
    reads: int = 0
    writes: int = 0
    properties: int = 0
    #: Properties that a tier had, when they were read for the second time.
    stored: int = 0
    #: Different combinations of write, ending, read, policy and place.
    combinations: int = 0
    comparisons: int = 0
    #: Reads that waited for a lock of the open write, which is no failure.
    blocked: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """The number of combinations that have a failure."""
        return len({f[1:6] for f in self.failures})

    def pairs(self) -> Counter[tuple[str, str]]:
        """Return the pairs of read and write that fail, with the number of their failures."""
        return Counter((f.read, f.write) for f in self.failures)


def causes(failures: Sequence[Failure]) -> Counter[tuple[str, str, str]]:
    """Return how many failures each family of writes and of reads has, by kind.

    The family is the part of a name before its colon.
    """
    return Counter(
        (f.kind, f.write.partition(':')[0], f.read.partition(':')[0] or '(the write)')
        for f in failures
    )
