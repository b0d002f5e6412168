"""Reads several values of a property with arguments at once.

All that the request tier and the process tier lack is looked for in the shared tier in one round
trip. What is missing there is claimed in the same one, computed, and stored in another. This
module does not know how one value is found, computed and stored: :mod:`.reading` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

from ..errors import StoreUnreachable
from ..steps import Step, about_to
from ..tiers.claims import Claim
from ..tiers.request import TierEntry
from .counting import counted_run
from .properties import Call
from .protocols import ReadingScope
from .reading import Reading, keep, read, told
from .recording import Tier
from .storing import Computed, judge, store


def read_many(scope: ReadingScope, calls: Mapping[Any, Call]) -> dict[Any, Any]:
    """Return the values of several calls of one property; compute those that no tier has.

    Of each missing value, one caller of all processes runs the creator. The others wait for it,
    after they have computed what is theirs: so two callers never wait for one another.

    :param scope: a scope whose pending changes are flushed.
    :param calls: by item.
    :return: the values by item, in the same order.
    :raises PropertyError: if the property's function ``many`` returns no mapping.
    """
    scope.ask()
    # items may be one call: 3 and (3,)
    distinct: dict[Any, Any] = {}
    for item, call in calls.items():
        distinct.setdefault(call.key, item)
    search = Search(scope, {item: calls[item] for item in distinct.values()})
    try:
        search.look()
        search.compute()
        search.wait()
    finally:
        search.leave()
    values = {key: search.value(item) for key, item in distinct.items()}
    return {item: values[call.key] for item, call in calls.items()}


class Search:
    """The search for several values; made for one read.

    :param calls: by item, each of another value.
    """

    def __init__(self, scope: ReadingScope, calls: Mapping[Any, Call]) -> None:
        self._scope = scope
        self._calls = calls
        # those that the request tier does not have, by item
        self._readings: dict[Any, Reading] = {}
        # what was found or computed, by item
        self._entries: dict[Any, TierEntry] = {}
        self._claims: dict[Any, Claim] = {}
        # the items that other callers compute
        self._awaited: list[Any] = []

    def look(self) -> None:
        """Look into all tiers; claim what is missing."""
        entered: dict[Any, Claim] = {}
        for item, call in self._calls.items():
            entry = self._scope.tier.get(call.key)
            if entry is not None:
                self._entries[item] = entry
                continue
            reading = self._readings[item] = Reading(self._scope, call)
            claim = reading.begin()
            if claim is None:
                if reading.nearest is not None:
                    self._take(item, reading.nearest)
                continue
            self._claims[item] = claim
            if claim.enter():
                entered[item] = claim
            else:
                self._awaited.append(item)
        if not entered:
            return
        about_to(Step.SHARED_TIER)
        try:
            stored = self._scope.cache.shared_tier.look_many(list(entered.values()))
        except StoreUnreachable:
            self._scope.store_lost()
            return
        for (item, claim), value in zip(entered.items(), stored, strict=True):
            entry = None if value is None else self._readings[item].take(value)
            if entry is not None:
                self._take(item, entry)
            elif claim.is_taken:
                self._awaited.append(item)

    def compute(self) -> None:
        """Compute what was not found, and what nobody else computes; store it for all."""
        awaited = set(self._awaited)
        missing = {
            item: reading
            for item, reading in self._readings.items()
            if item not in self._entries and item not in awaited
        }
        if not missing:
            return
        claims = {item: self._claims[item] for item in missing if item in self._claims}
        with next(iter(claims.values())).connecting() if claims else nullcontext():
            self._scope.connection()
        for item, claim in claims.items():
            if not missing[item].is_held(claim):
                claim.leave()
        computed: list[Computed] = []
        try:
            with self._scope.searching():
                self._run(missing, computed)
        except Exception:
            # the creator of one item has failed; the next caller need not compute the others
            store(self._scope, computed)
            raise
        store(self._scope, computed)
        self._scope.cache.shared_tier.leave_many(list(claims.values()))

    def _run(self, missing: Mapping[Any, Reading], computed: list[Computed]) -> None:
        """Compute values, and add them to those that are computed."""
        for item, each in self._compute_at_once(missing):
            computed.append(each)
            self._take(item, each.entry())
        for item, reading in missing.items():
            if item in self._entries:
                continue
            # the creator of another item may have read it
            entry = self._scope.tier.get(reading.call.key)
            if entry is None:
                computed.append(reading.computed())
                entry = computed[-1].entry()
            self._take(item, entry)

    def _compute_at_once(
        self, readings: Mapping[Any, Reading]
    ) -> Iterable[tuple[Any, Computed]]:
        """Compute values by the property's function ``many``, if it has one.

        :return: items and values; none for items that the function does not return.
        """
        scope, calls = self._scope, [reading.call for reading in readings.values()]
        prop, instance = calls[0].prop, calls[0].instance
        if prop.declaration.many is None:
            return []
        snapshot = scope.snapshot()
        about_to(Step.CREATOR)
        with counted_run(scope, prop) as timed, scope.run(*calls) as run:
            values = prop.declaration.create_many(instance, list(readings))
            encoded = {
                item: scope.cache.serializer.encode(values[item], prop.name)
                for item in readings
                if item in values
            }
        judge(scope, run)
        return [
            (item, Computed(
                scope, readings[item], run, each, snapshot, readings[item].claim, timed.seconds
            ))
            for item, each in encoded.items()
        ]

    def wait(self) -> None:
        """Wait for what other callers compute, one after the other.

        Other threads wait for this one only if they need the value that it waits for. They would
        wait for all the others, too, and one of these may depend on what they compute.
        """
        self._scope.cache.shared_tier.leave_many([self._claims[i] for i in self._awaited[1:]])
        for item in self._awaited:
            self._take(item, self._readings[item].awaited(self._claims[item]))

    def value(self, item: Any) -> Any:
        """Return the value of an item to a view or to the creator that is running.

        If a creator has changed since what the value depends on, or has ended the transaction, it
        is read again.
        """
        scope, call, entry = self._scope, self._calls[item], self._entries[item]
        tier: Tier = self._readings[item].tier if item in self._readings else 'request'
        is_past = entry.snapshot_number != scope.snapshot_number or scope.blocks(entry.tags)
        if tier != 'creator' and is_past:
            return read(scope, call)
        return told(scope, call, entry, tier)

    def _take(self, item: Any, entry: TierEntry) -> None:
        """Take what was found or computed. The request tier drops it, if a creator that runs
        later changes what it depends on."""
        self._entries[item] = entry
        keep(self._scope, self._calls[item], entry)

    def leave(self) -> None:
        """Give up all claims, so that nobody waits for them."""
        self._scope.cache.shared_tier.leave_many(list(self._claims.values()))
