"""The tags of a tenant: their versions, which are in doubt, and when they changed last.

This module prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...statistics.results import TagStatistics
from ...tags.overview import place_of
from .sites import Site


@dataclass(frozen=True)
class TagFacts:
    """A tag of a tenant that has had a change, or is counted."""

    name: str
    #: Its version; that of the birth if it has had no change since.
    version: str
    #: True if a transaction was about to commit a change of it.
    is_in_doubt: bool
    #: The number of commits that have changed it, as far as they were counted.
    changes: int
    #: The Unix time of the last one; None if it is not known.
    last_change: float | None


@dataclass(frozen=True)
class DoubtFacts:
    """The doubt of a transaction that was about to commit when last heard of."""

    tags: tuple[str, ...]
    #: Seconds since it began; None if it is not known.
    age: float | None


@dataclass(frozen=True)
class TenantTags:
    """What the tag store has of a tenant, or of the schema of shared tables."""

    tenant: str
    birth: str
    epoch: str
    #: None if the tenant is in no quarantine; else the transactions whose end it waits for.
    quarantine: tuple[str, ...] | None
    tags: tuple[TagFacts, ...]
    doubts: tuple[DoubtFacts, ...]


def tags_of(site: Site, tenant: str) -> TenantTags | None:
    """Return what the tag store has of a tenant.

    :return: None if it has nothing, or nothing that a process would use: the next request begins
        anew.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    state = site.tags.state(tenant)
    if state is None:
        return None
    snapshot = state.snapshot
    counted, none = site.statistics.of(tenant).tags, TagStatistics()
    facts = []
    for name in sorted({*snapshot.versions, *snapshot.in_doubt, *counted}):
        if place_of(tenant, name) != tenant:
            continue  # the schema of the shared table has its version
        number = counted.get(name, none)
        facts.append(TagFacts(
            name, snapshot.version(name), name in snapshot.in_doubt,
            number.changes, number.last_change,
        ))  # fmt: skip
    doubts = tuple(
        DoubtFacts(tuple(sorted(doubt.tags)), state.doubted_for.get(writer))
        for writer, doubt in snapshot.doubts.items()
    )
    return TenantTags(
        tenant, snapshot.birth, snapshot.epoch, snapshot.quarantine, tuple(facts), doubts
    )
