"""The names under which numbers are kept: one text for what is counted, and of whom.

So a process counts in one flat dictionary, and a store adds its numbers without knowing what they
mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any, NamedTuple

from .results import (
    Commit,
    LastRun,
    PropertyStatistics,
    SlotCounts,
    TagStatistics,
    TenantStatistics,
)

#: Between the parts of a field. The last part is a name, which may contain anything.
SEPARATOR = '\x1f'

#: The most tags that are told of one commit or run.
MAX_TAGS = 50

#: The most fields of a tenant. The numbers of others are only counted as dropped.
MAX_FIELDS = 20_000

#: The begin of the fields of tags, which may be many: they get no room in the last half.
TAG = f'tag{SEPARATOR}'

#: The number of commits that are kept of a tenant.
COMMITS = 100

#: The field that counts what had no room.
DROPPED = f'tenant{SEPARATOR}dropped{SEPARATOR}'

#: The counters of a property that are kept by the hour, too.
BY_HOUR = {
    'request_hits': 'hits',
    'process_hits': 'hits',
    'shared_hits': 'hits',
    'misses': 'misses',
    'run_seconds': 'run_seconds',
}

#: The counters of a tenant.
OF_TENANT = frozenset({'commits', 'changed_tags', 'doubted_tags', 'dropped'})

#: The counters of a property that are kept by a reason or verdict.
BY_REASON = frozenset({'refused', 'bypasses', 'audits'})

#: Numbers by field.
Counts = dict[str, float]


def field_of(kind: str, counter: str, name: str = '') -> str:
    """Return the field of a counter.

    :param kind: ``'property'``, ``'tag'`` or ``'tenant'``.
    :param name: of the property or tag.
    """
    return f'{kind}{SEPARATOR}{counter}{SEPARATOR}{name}'


class PropertyFields:
    """The fields of one property, made once.

    :param where: the property's name, with its class.
    """

    def __init__(self, where: str) -> None:
        def named(counter: str) -> str:
            return field_of('property', counter, where)

        #: By the tier that has answered a read; ``'creator'`` if none has.
        self.reads = {
            'request': named('request_hits'),
            'process': named('process_hits'),
            'shared': named('shared_hits'),
            'creator': named('misses'),
        }
        self.runs = named('runs')
        self.run_seconds = named('run_seconds')
        self.failed_runs = named('failed_runs')
        self.stored = named('stored')
        self.stored_bytes = named('stored_bytes')
        self.waits = named('waits')
        self.wait_seconds = named('wait_seconds')
        self._where = where

    def refused(self, reason: str) -> str:
        """Return the field of values that were not stored for a reason."""
        return field_of('property', f'refused:{reason}', self._where)

    def bypassed(self, reason: str) -> str:
        """Return the field of reads that could not use the cache for a reason."""
        return field_of('property', f'bypasses:{reason}', self._where)

    def audited(self, verdict: str) -> str:
        """Return the field of hits that were computed again, by what came of it."""
        return field_of('property', f'audits:{verdict}', self._where)


def has_room(fields: Mapping[str, Any], field: str) -> bool:
    """Return whether a field may be added to others."""
    most = MAX_FIELDS // 2 if field.startswith(TAG) else MAX_FIELDS
    return field in fields or len(fields) < most


def add_counts(fields: dict[str, Any], counts: Mapping[str, float]) -> None:
    """Add counts to others, as far as there is room."""
    for field, number in counts.items():
        try:
            fields[field] += number  # most often it is there, and this is done for each request
        except KeyError:
            if field != DROPPED and not has_room(fields, field):
                field, number = DROPPED, 1
            fields[field] = fields.get(field, 0) + number


class Delta(NamedTuple):
    """What a process has counted for one tenant since it last told of it."""

    counts: Counts
    #: Texts by field, of which the latest is kept.
    texts: dict[str, str]
    #: The commits as texts, the latest last.
    commits: list[str]

    @classmethod
    def empty(cls) -> Delta:
        """Return one without anything."""
        return cls({}, {}, [])

    def add(self, later: Delta) -> None:
        """Add what was counted later, as far as there is room."""
        add_counts(self.counts, later.counts)
        for field, text in later.texts.items():
            if has_room(self.texts, field):
                self.texts[field] = text
        self.commits.extend(later.commits)
        del self.commits[:-COMMITS]


def text_of_run(run: LastRun) -> str:
    """Return the text of a run, for :func:`tenant_statistics`."""
    parts = round(run.at, 3), run.seconds, run.size, run.tags[:MAX_TAGS], run.why_not_stored[:500]
    return json.dumps(parts)


def text_of_commit(commit: Commit) -> str:
    """Return the text of a commit, for :func:`tenant_statistics`."""
    return json.dumps((round(commit.at, 3), sorted(commit.tags)[:MAX_TAGS], commit.is_outside))


def by_hour(counts: Mapping[str, float]) -> Counts:
    """Return the part of the counts that is kept by the hour."""
    kept: Counts = {}
    for field, number in counts.items():
        kind, counter, name = field.split(SEPARATOR, 2)
        if kind == 'property' and counter in BY_HOUR:
            slot_field = field_of(kind, BY_HOUR[counter], name)
            kept[slot_field] = kept.get(slot_field, 0) + number
    return kept


def tenant_statistics(
    tenant: str, fields: Mapping[str, Any], commits: Iterable[str]
) -> TenantStatistics:
    """Return what the fields of a tenant tell. What can't be read is left out.

    :param fields: numbers and texts by field.
    :param commits: the latest first.
    """
    properties: dict[str, dict[str, Any]] = {}
    tags: dict[str, dict[str, Any]] = {}
    own: dict[str, int] = {}
    for field, value in fields.items():
        kind, _, rest = field.partition(SEPARATOR)
        counter, _, name = rest.partition(SEPARATOR)
        if kind == 'property':
            _add_to_property(properties.setdefault(name, {}), counter, value)
        elif kind == 'tag' and counter in ('changes', 'last_change'):
            convert = int if counter == 'changes' else float
            tags.setdefault(name, {})[counter] = _number(value, convert)
        elif kind == 'tenant' and counter in OF_TENANT:
            own[counter] = int(_number(value))
    return TenantStatistics(
        tenant,
        {name: PropertyStatistics(**found) for name, found in sorted(properties.items())},
        tags={name: TagStatistics(**found) for name, found in sorted(tags.items())},
        last_commits=tuple(found for text in commits for found in _commit(text)),
        **own,
    )


def _add_to_property(found: dict[str, Any], counter: str, value: Any) -> None:
    group, _, reason = counter.partition(':')
    if group in BY_REASON and reason:
        found.setdefault(group, {})[reason] = int(_number(value))
    elif counter == 'last_run':
        found[counter] = _last_run(value)
    elif counter in ('run_seconds', 'wait_seconds'):
        found[counter] = _number(value)
    elif counter in PropertyStatistics.__dataclass_fields__:
        found[counter] = int(_number(value))


def slot_properties(fields: Mapping[str, Any]) -> dict[str, SlotCounts]:
    """Return what the fields of an hour tell, by property."""
    found: dict[str, dict[str, Any]] = {}
    for field, value in fields.items():
        _, _, rest = field.partition(SEPARATOR)
        counter, _, name = rest.partition(SEPARATOR)
        if counter in SlotCounts.__dataclass_fields__:
            convert = float if counter == 'run_seconds' else int
            found.setdefault(name, {})[counter] = _number(value, convert)
    return {name: SlotCounts(**counts) for name, counts in sorted(found.items())}


def _number(value: Any, convert: Callable[[float], Any] = float) -> Any:
    """Return a number; 0 for what is none, which another program has written."""
    try:
        return convert(_finite(value))
    except (ValueError, TypeError, OverflowError):
        return convert(0)


def _finite(value: Any) -> float:
    """Return a number, and raise ValueError for an infinite one and for NaN."""
    number = float(value)
    if not isfinite(number):
        raise ValueError(value)
    return number


def _last_run(text: Any) -> LastRun | None:
    try:
        at, seconds, size, tags, why = json.loads(text)
        numbers = _finite(at), _finite(seconds), int(_finite(size))
        return LastRun(*numbers, tuple(map(str, tags)), str(why))
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _commit(text: Any) -> list[Commit]:
    try:
        at, tags, is_outside = json.loads(text)
        return [Commit(_finite(at), tuple(map(str, tags)), bool(is_outside))]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return []
