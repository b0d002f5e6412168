"""The story of a scope: what the cache does for it, step by step, for a log and for traces.

A scope has a story only if somebody listens: this module's logger is enabled for DEBUG, or a
tracer is set. That is looked up once for each snapshot, so that a read costs nothing otherwise.
Lines name properties, tags and the tenant, and never a value or an argument. This module does not
know how the cache works, nor which library makes traces.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import Protocol, TypeAlias

from cachetools import LRUCache

from ..forks import OwnLock
from ..tags.snapshot import VALUE_TAG, Snapshot

log = logging.getLogger(__name__)

#: The value of a span's attribute.
Attribute: TypeAlias = str | bool | int | float

#: The most tags that one line names.
MAX_NAMED = 20

#: The number of tenants whose epochs are remembered.
MAX_EPOCHS = 1000

#: What a block is about, and what the log says of it when it has ended.
SPANS = {
    'creator': 'computed in %.1f ms',
    'wait': "waited %.1f ms for another caller's run",
    'doubt': 'put in doubt, answered after %.1f ms',
    'publish': 'new versions sent in %.1f ms',
}


class Tracer(Protocol):
    """Makes spans, by whichever library."""

    def span(
        self, name: str, attributes: Mapping[str, Attribute]
    ) -> AbstractContextManager[object]:
        """Return a context manager that traces a block; an error of the block passes."""

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Add an event to the span that is current."""


class Stories:
    """Makes the stories of a cache's scopes. Made by the cache; lives as long."""

    def __init__(self) -> None:
        #: Makes spans; None if nobody traces.
        self.tracer: Tracer | None = None
        # by tenant, the epoch of the last snapshot that was told of
        self._epochs: LRUCache[str, str] = LRUCache(MAX_EPOCHS)
        self._lock = OwnLock()

    def begin(self, schema: str, snapshot: Snapshot, earlier: Story | None) -> Story | None:
        """Return the story of a scope that has taken a snapshot; None if nobody listens.

        :param earlier: the story of the scope so far.
        """
        is_logged = log.isEnabledFor(logging.DEBUG)
        if not is_logged and self.tracer is None:
            return None
        story = earlier or Story(schema)
        story.listen(self.tracer, is_logged)
        if is_logged:
            with self._lock.present:
                is_known = self._epochs.get(schema) == snapshot.epoch
                self._epochs[schema] = snapshot.epoch
            story.line(f'{"unchanged" if is_known else "new"} {snapshot!r}')
        return story


class Story:
    """What the cache does for one scope. Made with its first snapshot, ends with the scope."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        # tells the lines of scopes apart that work at the same time
        self._mark = secrets.token_hex(2)
        self._begun = perf_counter()
        self._reads: Counter[str] = Counter()
        self._tracer: Tracer | None = None
        self._is_logged = False

    def listen(self, tracer: Tracer | None, is_logged: bool) -> None:
        """Tell these from now on."""
        self._tracer, self._is_logged = tracer, is_logged

    def line(self, text: str) -> None:
        """Log a line."""
        if self._is_logged:
            log.debug('[%s %s] %s', self.schema, self._mark, text)

    def read(self, where: str, tier: str) -> None:
        """Tell that a value was read.

        :param tier: the tier that had it; ``'creator'`` if it was computed, which its run tells.
        """
        self._reads[tier] += 1
        if tier != 'creator':
            self.line(f'{where}: from the {tier} tier')

    def passed_by(self, where: str, reason: str) -> None:
        """Tell that a read could not use the cache."""
        self.line(f'{where}: the cache is passed by: {reason}')
        if self._tracer is not None:
            self._tracer.event(
                'ormcache.bypass', {'ormcache.property': where, 'ormcache.reason': reason}
            )

    def claimed(self, where: str) -> None:
        """Tell that a value was missing, and is computed for all that wait for it."""
        self.line(f'{where}: no tier has it; computing it for all')

    def computed(
        self, where: str, size: int, tags: Collection[str], refused: str, why: str
    ) -> None:
        """Tell what has become of a value that was computed.

        :param size: its bytes.
        :param refused: why it was not stored, in a word or two; '' if it was stored.
        :param why: the same for people. It may have names that a visitor has chosen.
        """
        verdict = f'not stored: {why}' if refused else 'stored'
        self.line(f'{where}: {verdict}; {size:,} bytes, {named(tags)}')
        if self._tracer is not None:
            told: dict[str, Attribute]
            told = {'ormcache.property': where, 'ormcache.size': size, 'ormcache.reason': refused}
            self._tracer.event('ormcache.not_stored' if refused else 'ormcache.stored', told)

    def committed(self, tags: Collection[str]) -> None:
        """Tell that a transaction was committed that has changed tags."""
        self.line(f'committed: {named(tags)}')

    def rolled_back(self, tags: Collection[str]) -> None:
        """Tell that a transaction was rolled back that had changed tags."""
        self.line(f'rolled back: {named(tags)}')

    def closed(self) -> None:
        """Tell that the scope has closed."""
        misses = self._reads.pop('creator', 0)
        hits = ', '.join(f'{number} {tier}' for tier, number in self._reads.items()) or '0'
        took = (perf_counter() - self._begun) * 1000
        self.line(f'closed after {took:.1f} ms; hits: {hits}; misses: {misses}')

    @contextmanager
    def span(
        self, kind: str, subject: str, name: str, attributes: Mapping[str, Attribute]
    ) -> Iterator[None]:
        """Tell of a block: how long it has taken.

        :param kind: one of :data:`SPANS`.
        :param subject: the property, or the tags, for the log.
        :param name: of the span.
        """
        begun = perf_counter()
        told = {'ormcache.tenant': self.schema, **attributes}
        with NO_SPAN if self._tracer is None else self._tracer.span(name, told):
            try:
                yield
            except BaseException as error:
                self.line(f'{subject}: {type(error).__name__} in {kind}')
                raise
        text = SPANS[kind] % ((perf_counter() - begun) * 1000)
        self.line(f'{subject}: {text}')


#: A context manager for a block that nobody traces.
NO_SPAN: AbstractContextManager[object] = nullcontext()


def of_property(
    story: Story | None, kind: str, where: str
) -> AbstractContextManager[object]:
    """Return a context manager for a block about a property, which does nothing without a
    story."""
    if story is None:
        return NO_SPAN
    attributes = {'ormcache.property': where, 'code.function.name': where}
    return story.span(kind, where, f'ormcache.{kind} {where}', attributes)


def of_tags(
    story: Story | None, kind: str, tags: Collection[str]
) -> AbstractContextManager[object]:
    """Return a context manager for a block about tags, which does nothing without a story."""
    if story is None:
        return NO_SPAN
    attributes = {'ormcache.tags': len(tags)}
    return story.span(kind, named(tags), f'ormcache.{kind}', attributes)


def named(tags: Collection[str]) -> str:
    """Return the names of tags, as far as there are not too many."""
    # those by which the application evicts by hand say nothing about it
    names = sorted(tag for tag in tags if not tag.startswith(VALUE_TAG))
    more = f' and {len(names) - MAX_NAMED} more' if len(names) > MAX_NAMED else ''
    return (', '.join(names[:MAX_NAMED]) or 'no tags') + more
