"""The numbers as they are read: per tenant, per property, per tag and per hour.

Plain values, for programs that show them. This module does not know how they were counted or kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .rates import upper_bound

#: The verdicts of an audit that are checks: the value was compared.
CHECKS = ('agreed', 'disagreed', 'reordered')


@dataclass(frozen=True)
class LastRun:
    """The latest run of a property's creator, of those that were told of."""

    #: Seconds since 1970, by the clock of the process that ran it.
    at: float
    #: Seconds that it took.
    seconds: float
    #: Bytes of the value.
    size: int
    #: The tags that the value depends on; no more than the first :data:`.MAX_TAGS`.
    tags: tuple[str, ...] = ()
    #: Why the value was not stored, as a text for people; '' if it was.
    why_not_stored: str = ''


@dataclass(frozen=True)
class PropertyStatistics:
    """What was counted of one property, for one tenant."""

    #: Reads that the request tier has answered; an estimate, see :data:`.SAMPLING`.
    request_hits: int = 0
    #: Reads that the process tier has answered.
    process_hits: int = 0
    #: Reads that the shared tier has answered.
    shared_hits: int = 0
    #: Reads for which the creator ran.
    misses: int = 0
    #: Runs of the creator. One run may compute several values.
    runs: int = 0
    #: Seconds of all runs.
    run_seconds: float = 0.0
    #: Runs that have raised.
    failed_runs: int = 0
    #: Values that were stored for all processes.
    stored: int = 0
    #: Bytes of these values.
    stored_bytes: int = 0
    #: Reads that have waited for the run of another caller.
    waits: int = 0
    #: Seconds that they have waited.
    wait_seconds: float = 0.0
    #: Values that were not stored, by reason.
    refused: Mapping[str, int] = field(default_factory=dict)
    #: Reads that could not use the cache, by reason.
    bypasses: Mapping[str, int] = field(default_factory=dict)
    #: Hits that the auditor has computed again, by verdict: ``'agreed'``; ``'disagreed'``, the
    #: value is not what the database gives; ``'reordered'``, it has the same items in another
    #: order; ``'untold'``, it could not be compared; ``'failed'``, the creator has raised.
    audits: Mapping[str, int] = field(default_factory=dict)
    #: The latest run; None if none is known.
    last_run: LastRun | None = None

    @property
    def hits(self) -> int:
        """Reads that a tier has answered."""
        return self.request_hits + self.process_hits + self.shared_hits

    @property
    def gets(self) -> int:
        """All reads."""
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float | None:
        """The part of the reads that a tier has answered, from 0 to 1; None without reads."""
        return self.hits / self.gets if self.gets else None

    @property
    def checks(self) -> int:
        """Hits that the auditor has compared with the database."""
        return sum(self.audits.get(verdict, 0) for verdict in CHECKS)

    @property
    def disagreements(self) -> int:
        """Those of the checks whose value is not what the database gives. A list whose items are
        only in another order is none: the order of a query without ``ORDER BY`` may change at any
        time."""
        return self.audits.get('disagreed', 0)

    @property
    def disagreement_bound(self) -> float:
        """The rate of disagreements among all hits is below this, with a confidence of 95 %; see
        :func:`~onegov_ormcache.statistics.rates.upper_bound`."""
        return upper_bound(self.disagreements, self.checks)


@dataclass(frozen=True)
class TagStatistics:
    """What was counted of one tag."""

    #: Commits that have changed it.
    changes: int = 0
    #: When the latest of them was, in seconds since 1970; None if that is not known.
    last_change: float | None = None


@dataclass(frozen=True)
class Commit:
    """One change of tags: a commit, or what a process has heard of."""

    #: Seconds since 1970, by the clock of the process that has told of it.
    at: float
    #: The changed tags; no more than the first :data:`.MAX_TAGS`.
    tags: tuple[str, ...]
    #: True if it was no commit of this application: a trigger or an outbox told of it, or all was
    #: given up (then the tag is ``'#code'``). Each process that has heard of it tells.
    is_outside: bool = False


@dataclass(frozen=True)
class TenantStatistics:
    """What was counted for one tenant, by all processes, since its numbers last expired."""

    tenant: str
    #: By the property's name with its class, as in ``'package.module.App.users'``.
    properties: Mapping[str, PropertyStatistics] = field(default_factory=dict)
    #: Commits that have changed tags.
    commits: int = 0
    #: Tags that they have changed, one commit after the other.
    changed_tags: int = 0
    #: Tags that they have put in doubt before.
    doubted_tags: int = 0
    tags: Mapping[str, TagStatistics] = field(default_factory=dict)
    #: The latest commits, the last one first.
    last_commits: tuple[Commit, ...] = ()
    #: Counts that had no room, see :data:`.MAX_FIELDS`.
    dropped: int = 0


    def beside(self, shared: TenantStatistics) -> TenantStatistics:
        """Return these numbers with the changes of tables that the tenant shares with others.

        :param shared: those of the schema of these tables, its own commits among them.
        """
        own = {commit.at for commit in self.last_commits}
        others = [commit for commit in shared.last_commits if commit.at not in own]
        commits = sorted((*self.last_commits, *others), key=lambda commit: -commit.at)
        return replace(self, tags={**self.tags, **shared.tags}, last_commits=tuple(commits))


@dataclass(frozen=True)
class SlotCounts:
    """What was counted of one property in one hour."""

    hits: int = 0
    misses: int = 0
    run_seconds: float = 0.0


@dataclass(frozen=True)
class Slot:
    """What was counted for one tenant in one hour."""

    #: When the hour began, in seconds since 1970.
    start: float
    properties: Mapping[str, SlotCounts] = field(default_factory=dict)
