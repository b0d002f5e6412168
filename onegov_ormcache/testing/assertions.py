"""Assertions about one value: which tier has it, and whether a commit evicts it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from ..core.recording import CacheEvent
from ..errors import ConfigurationError
from ..tags.snapshot import CODE_TAG
from ..tiers.process import Stamp
from .values import NOT_GIVEN, Value, changes, shown_tags

#: The tiers that :func:`assert_cached` may be asked about.
CachingTier: TypeAlias = Literal['request', 'process', 'shared']

TIERS = ('request', 'process', 'shared')


def assert_cached(
    target: Any,
    name: str,
    /,
    args: Any = NOT_GIVEN,
    *,
    tier: CachingTier | None = None,
    schema: str | None = None,
) -> None:
    """Assert that the next read of an orm-cached property does not run its creator.

    Nothing is read, computed or stored. The shared tier is asked, on Redis by a command.

    :param target: the app, request or other object whose property it is.
    :param name: the property's name.
    :param args: the arguments of a property that takes arguments: a tuple, or the only one.
    :param tier: the tier that must have the value; others may have it, too. None: the process tier
        or the shared tier, which other requests use as well.
    :param schema: the tenant; by default that of the open scope. A scope that is open for it is
        the one whose next read counts.
    :raises AssertionError: if no such tier has it; the message says why.
    :raises PropertyError: if the object has no such orm-cached property.
    :raises ArgumentError: if the arguments do not fit the property.
    :raises OutsideScopeError: if no scope is open and no tenant is given.
    """
    __tracebackhide__ = True
    if tier is not None and tier not in TIERS:
        raise ConfigurationError(
            f'assert_cached: tier={tier!r}; expected one of {", ".join(TIERS)}, or None'
        )
    value = Value(target, name, args, schema, 'assert_cached')
    with value.scope() as scope:
        found = value.tiers(scope)
        if tier in found or (tier is None and found.keys() & {'process', 'shared'}):
            return
        wanted = 'cached' if tier is None else f'in the {tier} tier'
        if found:
            why = f'of those it is only in: {", ".join(found)}'
        else:
            why = value.why_missing(scope)
    raise AssertionError(f'{value} is not {wanted}: {why}')


@contextmanager
def assert_evicted_by(
    target: Any, name: str, /, args: Any = NOT_GIVEN, *, schema: str | None = None
) -> Iterator[None]:
    """Assert that what a ``with`` block commits evicts a value of an orm-cached property.

    The value is read before the block, in a scope of its own, if no tier has it. What is asserted
    is that no scope which opens after the block uses the value that was stored before it.

    :param target: the app, request or other object whose property it is.
    :param name: the property's name.
    :param args: the arguments of a property that takes arguments: a tuple, or the only one.
    :param schema: the tenant; by default that of the open scope.
    :raises AssertionError: if the value is still valid, or if it can't be stored; the message says
        what it depends on, and what the block has changed.
    :raises PropertyError: if the object has no such orm-cached property.
    :raises ArgumentError: if the arguments do not fit the property.
    :raises OutsideScopeError: if no scope is open and no tenant is given.
    """
    __tracebackhide__ = True
    watch = Watch(Value(target, name, args, schema, 'assert_evicted_by'))
    with watch.watching():
        yield
    if not watch.evicted:
        raise AssertionError(
            f'{watch.value} was not evicted.\n'
            f'  It depends on: {shown_tags(watch.tags)}\n'
            f'  The block has committed: {watch.told()}'
        )


@contextmanager
def assert_not_evicted(
    target: Any, name: str, /, args: Any = NOT_GIVEN, *, schema: str | None = None
) -> Iterator[None]:
    """Assert that what a ``with`` block commits does not evict a value of an orm-cached property.

    See :func:`assert_evicted_by`. Rows of a policy ``rows(...)`` are told apart by 256 buckets, so
    one row in 256 evicts the value of another.

    :raises AssertionError: if the value is not valid any more, or if it can't be stored; the
        message says what has evicted it.
    """
    __tracebackhide__ = True
    watch = Watch(Value(target, name, args, schema, 'assert_not_evicted'))
    with watch.watching():
        yield
    if watch.evicted:
        raise AssertionError(
            f'{watch.value} was evicted by a change of: {shown_tags(watch.evicted)}\n'
            f'  The block has committed: {watch.told()}'
        )


class Watch:
    """Looks at a stored value before and after a block.

    :param value: is read first, if it is not stored.
    :raises AssertionError: if it can't be stored.
    """

    def __init__(self, value: Value) -> None:
        __tracebackhide__ = True
        self.value = value
        #: The versions of all tags that the value depends on, before the block.
        self.stamp = self._stored_stamp()
        #: The tags that the value depends on; not the one that stands for everything.
        self.tags = self.stamp.keys() - {CODE_TAG}
        #: The tags of the value that have changed since, after the block.
        self.evicted: set[str] = set()
        # what was committed, by tenant
        self._committed: dict[str, set[str]] = defaultdict(set)

    def _stored_stamp(self) -> Stamp:
        __tracebackhide__ = True
        value = self.value
        for attempt in (1, 2):
            with value.new_scope() as scope:
                for stored in value.tiers(scope).values():
                    if stored is not None:
                        return stored.stamp
                if attempt == 1:
                    value.read()
                else:
                    why = value.why_missing(scope)
        raise AssertionError(f'{value} can not be evicted, because it is not stored: {why}')

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record what the block commits; see afterwards whether the value is still valid."""
        with self.value.cache.recordings.listening(self._take, 'commit'):
            yield
        self.evicted = changes(self.stamp, self.value.present(self.stamp.keys()))

    def _take(self, event: CacheEvent) -> None:
        self._committed[event.schema] |= event.tags

    def told(self) -> str:
        """Return what the block has committed, for a message."""
        if not self._committed:
            return 'nothing; it must commit what it changes'
        return '; '.join(
            shown_tags(tags) if schema == self.value.schema else f'{schema}: {shown_tags(tags)}'
            for schema, tags in sorted(self._committed.items())
        )
