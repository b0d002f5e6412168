"""Tells listeners which tags have got new versions: a signal, for whoever keeps values elsewhere.

It is sent when the new versions are published, or the doubt still stands: who reads again at once
reads nothing stale. This module does not know why a tag has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from blinker import Signal

from ..tags.snapshot import CODE_TAG

log = logging.getLogger(__name__)

#: The tags of a tenant of which everything may have changed.
ALL = frozenset((CODE_TAG,))


class EvictedProperties(Protocol):
    """The part of a registry that this module uses."""

    def evicted_by(self, tags: Collection[str]) -> frozenset[str]:
        """Return the names of the properties that have one of these tags."""


class PublishedTags:
    """The signal of one cache; made by the cache, and used by all threads.

    :param registry: knows the cache's properties.
    :param keys_of: returns the keys of the tags of a place, see :meth:`.OrmCache.keys_of`.
    """

    def __init__(
        self,
        registry: EvictedProperties,
        keys_of: Callable[[str, Collection[str]], frozenset[str]],
    ) -> None:
        self._registry = registry
        self._keys_of = keys_of
        self.signal = Signal()

    def __repr__(self) -> str:
        return f'<PublishedTags to {len(self.signal.receivers)} receivers>'

    @property
    def has_receivers(self) -> bool:
        """True if anybody wants to know."""
        return bool(self.signal.receivers)

    def tell(self, places: Mapping[str, Collection[str]]) -> None:
        """Call each receiver once for each place; log what they raise.

        :param places: the changed tags by place, which is a tenant or the schema of shared tables.
        """
        if not self.signal.receivers or self.signal.is_muted:
            return
        for place, changed in places.items():
            if changed:
                self._tell(place, frozenset(changed))

    def _tell(self, place: str, tags: frozenset[str]) -> None:
        receivers = list(self.signal.receivers_for(place))
        if not receivers:
            return
        properties, keys = self._registry.evicted_by(tags), self._keys_of(place, tags)
        for receiver in receivers:
            try:
                receiver(place, tags=tags, properties=properties, keys=keys)
            except Exception:
                # the change is committed: neither its commit nor other receivers may fail
                log.exception('%s: a receiver of on_tags_published has failed', place)
