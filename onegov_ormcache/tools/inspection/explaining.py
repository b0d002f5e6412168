"""Explains one property: what it depends on, how its last runs went, and what evicted it last.

This module prints nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...core.policies import as_written
from ...core.properties import Property
from ...statistics.results import Commit, PropertyStatistics
from ...tags.snapshot import CODE_TAG, PROPERTY_TAG, ROWS_TAG, VALUE_TAG, whole_tag
from .sites import Site
from .values import values_of


@dataclass(frozen=True)
class Eviction:
    """The last change that concerned a property."""

    #: Seconds since 1970, by the clock of the process that committed.
    at: float
    #: The changed tags that its values have.
    tags: tuple[str, ...]
    #: True if it was no commit of the application: a trigger or an outbox told of it, or all was
    #: given up.
    is_outside: bool


@dataclass(frozen=True)
class InTenant:
    """A property in one tenant."""

    tenant: str
    counted: PropertyStatistics
    #: The number of its values in the shared tier, and how many of them are valid.
    values: int
    valid: int
    #: The bytes of these values.
    size: int
    #: None if no change is known that concerned it.
    evicted: Eviction | None
    #: The tags of its values that are in doubt, by which it is computed without the cache.
    in_doubt: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """A property, as it is declared and in some tenants."""

    #: Its full name: module, class, name.
    where: str
    #: File and line of the creator.
    location: str
    #: The policy, as it was written.
    policy: str
    #: What the policy means, in a sentence.
    meaning: str
    #: The tags that all its values have.
    tags: tuple[str, ...]
    #: By what its values differ beside the tenant: arguments, role, functions.
    differs_by: tuple[str, ...]
    #: When its values end by themselves, in words; '' if they do not.
    expires: str
    tenants: tuple[InTenant, ...]


def explain(site: Site, prop: Property, tenants: Collection[str]) -> Explanation:
    """Return an explanation of a property.

    :param tenants: those in which it is looked at.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    declared = prop.declaration
    return Explanation(
        where=prop.where,
        location=declared.location,
        policy=as_written(declared.cache_policy),
        meaning=_meaning(prop),
        tags=tuple(sorted(tag for tag in prop.tags if not tag.startswith(VALUE_TAG))),
        differs_by=_differs_by(prop),
        expires=_expires(prop),
        tenants=tuple(in_tenant(site, prop, tenant) for tenant in tenants),
    )


def in_tenant(site: Site, prop: Property, tenant: str) -> InTenant:
    """Return what is known of a property in one tenant.

    :raises StoreUnreachable: if Redis can't be reached.
    """
    counted = site.statistics.of(tenant)
    own = counted.properties.get(prop.where, PropertyStatistics())
    found = values_of(site, tenant, prop).values
    tags = {*prop.tags, *(own.last_run.tags if own.last_run else ())}
    tags.update(*(each.tags for each in found))
    return InTenant(
        tenant=tenant,
        counted=own,
        values=len(found),
        valid=sum(each.is_valid for each in found),
        size=sum(each.size for each in found),
        evicted=_last(tags, counted.last_commits),
        in_doubt=tuple(sorted({tag for each in found for tag in each.in_doubt})),
    )


def _last(tags: Collection[str], commits: Collection[Commit]) -> Eviction | None:
    """Return the latest commit that changed one of these tags."""
    own = {whole_tag(tag) or tag for tag in tags}.union(tags, (CODE_TAG,))
    for commit in sorted(commits, key=lambda commit: -commit.at):
        if concerned := sorted(own.intersection(commit.tags)):
            return Eviction(commit.at, tuple(concerned), commit.is_outside)
    return None


def _meaning(prop: Property) -> str:
    """Return what evicts a property."""
    parts = []
    tables = sorted(tag.partition(':')[2] for tag in prop.tags if tag.startswith('table:'))
    if tables:
        parts.append(f'any change of {", ".join(tables)}')
    for rows, _ in prop.rows:
        # without the kinds of the columns' values, which stand at its end
        name = rows.tag.removeprefix(PROPERTY_TAG + ROWS_TAG).rpartition(':')[0]
        parts.append(f'a change of the rows whose {name} its arguments name')
    if prop.functions:
        parts.append('a changed object for which its function returns True')
    if prop.auto:
        parts.append('a change of what its creator has read')
    if not parts:
        return 'nothing evicts it but an eviction by hand'
    return 'evicted by ' + ', or by '.join(parts)


def _differs_by(prop: Property) -> tuple[str, ...]:
    """Return by what the values of a property differ, beside the tenant."""
    declared = prop.declaration
    found = [f'argument {name}' for name in declared.parameters.names]
    for function in declared.varies:
        name = getattr(function, '__qualname__', repr(function))
        found.append('role' if name == 'role_of' else f'{name}()')
    return tuple(found)


def _expires(prop: Property) -> str:
    expires = prop.declaration.expires
    if expires is None:
        return ''
    return 'when a function of the value says' if callable(expires) else f'after {expires} s'
