"""Checks the properties of an application, by their declarations and by what was counted.

This module prints nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ...core.properties import Property
from ...errors import AuditError, OrmCacheError
from ...statistics.results import PropertyStatistics, TenantStatistics
from ...tags.snapshot import CODE_TAG, VALUE_TAG, whole_tag
from .findings import Finding, error, note, warning
from .server_checks import check_servers
from .sites import Site

#: The number of reads from which on a property that is always missed is a finding.
ENOUGH_READS = 20

#: The most tenants whose numbers are looked at.
MOST_TENANTS = 100

#: Why a value was not stored, in the words of the statistics, and what to do about it.
REASONS = {
    'tainted': 'its creator uses what can not be recorded',
    'too large': 'its value is larger than the setting max_value_size',
    'expired': 'its value has expired when it is computed (expires)',
    'own change': 'it is read where its tables have just been changed',
    'doubt': 'others change its tables all the time',
    'changed meanwhile': 'others change its tables while it is computed',
    'replica': 'it is read from a replica, whose values are not stored',
    'outage': 'Redis can not be reached, or takes no values',
}


@dataclass
class Sums:
    """What was counted of a property in all tenants that were looked at."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    failed: int = 0
    #: Hits that the auditor has compared with the database, and those that were not what it gives.
    checks: int = 0
    disagreements: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    why_not_stored: str = ''
    #: The tags of its last runs, and whether any has changed.
    tags: set[str] = field(default_factory=set)
    has_changed: bool = False

    def add(self, counted: PropertyStatistics) -> None:
        """Add what was counted in one tenant."""
        self.hits += counted.hits
        self.misses += counted.misses
        self.stored += counted.stored
        self.failed += counted.failed_runs
        self.checks += counted.checks
        self.disagreements += counted.disagreements
        self.refused.update(counted.refused)
        if counted.last_run is not None:
            self.why_not_stored = counted.last_run.why_not_stored or self.why_not_stored
            self.tags.update(counted.last_run.tags)


def check(site: Site) -> list[Finding]:
    """Check settings, servers and properties of an application.

    What can't be reached is a finding, and what it would tell is left out.

    :param site: that of a cache.
    """
    found = [*check_settings(site), *check_servers(site), *check_declarations(site)]
    try:
        found += check_counted(site)
    except OrmCacheError:
        pass  # that Redis can't be reached was found above
    return found


def check_settings(site: Site) -> Iterator[Finding]:
    """Yield what is to be said of the settings."""
    if site.cache is None:
        return
    settings = site.cache.settings
    if settings.audit == 'off':
        yield note(
            'audit', "the setting is 'off': nobody tells of creators that read a table which "
            "their policy does not mention; 'warn' logs it"
        )  # fmt: skip
    if settings.on_outage in ('continue', 'expire') and settings.redis_url is not None:
        yield note(
            'on_outage', f'the setting is {settings.on_outage!r}: while Redis is away, other '
            'processes may serve what was there before a commit'
        )  # fmt: skip
    if not site.properties:
        yield warning('properties', 'the application has no orm-cached properties')


def check_declarations(site: Site) -> Iterator[Finding]:
    """Yield what is wrong with policies."""
    for prop in site.properties:
        depends = [tag for tag in prop.tags if not tag.startswith(VALUE_TAG)]
        if not (depends or prop.auto or prop.rows or prop.declaration.expires):
            yield error(
                prop.where, f'its policy names nothing ({prop.declaration.location}), so no '
                "change evicts it: name its tables, or use 'auto'"
            )  # fmt: skip
        for message in sorted(prop.logged):
            if 'does not mention' in message or 'does not vary by' in message:
                yield error(prop.where, message.removeprefix(f'{prop.where} '))


def check_counted(site: Site) -> Iterator[Finding]:
    """Yield the properties that are always missed, or never evicted, by what was counted.

    :raises StoreUnreachable: if Redis can't be reached.
    """
    tenants = [site.statistics.of(name) for name in site.statistics.tenants()[:MOST_TENANTS]]
    sums = summed(tenants)
    for prop in site.properties:
        own = sums.get(prop.where)
        if own is None:
            continue
        if own.disagreements:
            yield error(
                prop.where, f'{own.disagreements} of {own.checks} hits that the auditor has '
                'compared were not what the database gives: its policy or a writer misses a '
                'change, or its creator depends on more than the database'
            )  # fmt: skip
        if own.failed and own.failed >= own.misses:
            yield warning(prop.where, f'each of its {own.failed} runs has raised an error')
        elif not own.hits and own.misses >= ENOUGH_READS:
            # values for arguments of which each was asked for once are no mistake
            kind = note if prop.takes_arguments and not own.refused else warning
            yield kind(prop.where, f'none of {own.misses} reads was a hit{_why(own)}')
        elif own.stored and own.hits and not own.has_changed:
            tags = ', '.join(sorted(tag for tag in own.tags if not tag.startswith(VALUE_TAG)))
            yield note(
                prop.where, 'no commit is counted that has evicted it: if its values are not as '
                f'lasting as that, its policy is wrong (it depends on {tags or "nothing"})'
            )  # fmt: skip


def summed(tenants: Iterable[TenantStatistics]) -> Mapping[str, Sums]:
    """Return what was counted in all these tenants, by property."""
    found: dict[str, Sums] = {}
    for tenant in tenants:
        changed = {tag for tag, counted in tenant.tags.items() if counted.changes}
        for where, counted in tenant.properties.items():
            own = found.setdefault(where, Sums())
            own.add(counted)
            tags = counted.last_run.tags if counted.last_run else ()
            named = {whole_tag(tag) or tag for tag in tags}.union(tags, (CODE_TAG,))
            own.has_changed = own.has_changed or not named.isdisjoint(changed)
    return found


def _why(own: Sums) -> str:
    """Return the reason for which the values of a property are not stored, as an end of a
    sentence."""
    if not own.refused:
        return ': its arguments or variants are never the same, or it is evicted before each read'
    (reason, _), *_ = own.refused.most_common(1)
    text = own.why_not_stored if reason == 'tainted' else ''
    return f': its values are not stored, because {text or REASONS.get(reason, reason)}'


def audited(site: Site, tenant: str, instance: object) -> list[Finding]:
    """Read each property of an object that takes no arguments, in one tenant, and tell what the
    audit finds. Nothing is committed.

    Values that are cached are not computed, so their creators are called.

    :param instance: an app, or another object with cached properties.
    """
    cache, found = site.cache, []
    if cache is None:
        return []
    for prop in site.properties:
        declared = prop.declaration
        if declared.is_response or prop.takes_arguments or not _is_of(instance, prop):
            continue
        prop.logged.clear()
        try:
            with cache.scope(tenant, create=False):
                cache.evict(instance, prop.name)
                getattr(instance, prop.name)
        except AuditError as failure:
            found.append(error(prop.where, str(failure)))
        except Exception as failure:
            found.append(error(
                prop.where,
                f'its creator raised {type(failure).__name__} in the tenant {tenant!r}: '
                f'{failure}',
            ))  # fmt: skip
        found += [
            warning(prop.where, message.removeprefix(f'{prop.where} '))
            for message in sorted(prop.logged) if message.startswith(prop.where)
        ]  # fmt: skip
    return found


def _is_of(instance: object, prop: Property) -> bool:
    """Return whether a property is one of this object's class, and not of its requests."""
    return getattr(type(instance), prop.name, None) is prop.declaration
