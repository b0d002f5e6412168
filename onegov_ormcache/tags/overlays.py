"""Versions by tag that many snapshots share, beside the few that each has of its own.

A tenant may have some thousand tags, of which a commit changes a few. So a snapshot after a change
is the one before, with the change laid over it; nothing is copied but earlier changes. This module
knows mappings, and does not know what a version is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

#: A mapping with no more entries is copied whenever something changes: that costs less than to
#: look into two mappings at each read.
SMALL = 64

#: Changes are merged with what they lie over, into a mapping of its own, when they are more than
#: this part of it: then both the copies of changes and those of the whole are a small part of all
#: that is done.
MERGED_PART = 8


class Overlay(Mapping[str, str]):
    """A mapping, and what has changed since; made by :func:`with_changes`, never changed.

    :param base: the mapping below, which others use as well.
    :param changes: what lies over it.
    """

    __slots__ = ('_length', 'base', 'changes')

    def __init__(self, base: Mapping[str, str], changes: Mapping[str, str]) -> None:
        self.base = base
        self.changes = changes
        self._length = len(base) + sum(key not in base for key in changes)

    def __getitem__(self, key: str) -> str:
        changes = self.changes
        return changes[key] if key in changes else self.base[key]

    def get(self, key: str, default: Any = None, /) -> Any:
        # the one of Mapping raises and catches a KeyError for each tag that has not changed
        changes = self.changes
        return changes[key] if key in changes else self.base.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self.changes or key in self.base

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        yield from self.base
        for key in self.changes:
            if key not in self.base:
                yield key


def with_changes(mapping: Mapping[str, str], changes: Mapping[str, str]) -> Mapping[str, str]:
    """Return what a mapping is after changes; the mapping itself stays as it is.

    Takes as long as the present and some earlier changes have entries, not the mapping.
    """
    if len(mapping) <= SMALL:
        return {**mapping, **changes}
    base, earlier = _split(mapping)
    if (len(earlier) + len(changes)) * MERGED_PART > len(base):
        return {**base, **earlier, **changes}
    return Overlay(base, {**earlier, **changes})


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> Set[str]:
    """Return the keys whose values may differ: all, unless the mappings have a base in common."""
    base, changes = _split(one)
    other_base, other_changes = _split(other)
    if base is other_base:
        return changes.keys() | other_changes.keys()
    return one.keys() | other.keys()


def _split(mapping: Mapping[str, str]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    return (mapping.base, mapping.changes) if isinstance(mapping, Overlay) else (mapping, {})
