"""Reads several values of a property with arguments at once.

All that the request tier and the process tier lack is looked for in the shared tier in one round
trip. What is missing there is claimed in the same one, computed, and stored in another. This
module does not know how one value is found, computed and stored: :mod:`.reading` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from ..errors import StoreUnreachable
from ..steps import Step, about_to
from ..tiers.claims import Claim
from .properties import Call
from .protocols import ReadingScope
from .reading import Reading, returned
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
    found: dict[Any, Any] = {}
    readings: dict[Any, Reading] = {}
    for item, call in calls.items():
        entry = scope.tier.get(call.key)
        if entry is not None:
            found[item] = returned(scope, call, entry, 'request')
        else:
            readings[item] = Reading(scope, call)
    search = Search(scope, readings)
    try:
        search.look()
        search.compute()
        search.wait()
    finally:
        search.leave()
    for item, reading in readings.items():
        entry = search.entries[item]
        found[item] = returned(scope, reading.call, entry, reading.tier)
    return {item: found[item] for item in calls}


class Search:
    """The search for several values that the request tier does not have; made for one read.

    :param readings: by item.
    """

    def __init__(self, scope: ReadingScope, readings: Mapping[Any, Reading]) -> None:
        self._scope = scope
        self._readings = readings
        #: What was found or computed, by item.
        self.entries: dict[Any, Any] = {}
        self._claims: dict[Any, Claim] = {}
        # the items that other callers compute
        self._awaited: list[Any] = []

    def look(self) -> None:
        """Look into the process tier and the shared tier; claim what is missing."""
        entered: dict[Any, Claim] = {}
        for item, reading in self._readings.items():
            claim = reading.begin()
            if claim is None:
                if reading.nearest is not None:
                    self.entries[item] = reading.nearest
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
                self.entries[item] = entry
            elif claim.is_taken:
                self._awaited.append(item)

    def compute(self) -> None:
        """Compute what was not found, and what nobody else computes; store it for all."""
        awaited = set(self._awaited)
        missing = {
            item: reading
            for item, reading in self._readings.items()
            if item not in self.entries and item not in awaited
        }
        if not missing:
            return
        claims = {item: self._claims[item] for item in missing if item in self._claims}
        with next(iter(claims.values())).connecting() if claims else nullcontext():
            self._scope.connection()
        for item, claim in claims.items():
            if not missing[item].is_held(claim):
                claim.leave()
        with self._scope.searching():
            computed = self._compute_at_once(missing)
            for item, reading in missing.items():
                if item in computed:
                    continue
                # the creator of another item may have read it
                entry = self._scope.tier.get(reading.call.key)
                if entry is None:
                    computed[item] = reading.computed()
                else:
                    self.entries[item] = entry
        store(self._scope, list(computed.values()))
        self._scope.cache.shared_tier.leave_many(list(claims.values()))
        self.entries |= {item: each.entry() for item, each in computed.items()}

    def _compute_at_once(self, readings: Mapping[Any, Reading]) -> dict[Any, Computed]:
        """Compute values by the property's function ``many``, if it has one.

        :return: none for items that the function does not return.
        """
        scope, calls = self._scope, [reading.call for reading in readings.values()]
        prop, instance = calls[0].prop, calls[0].instance
        if prop.declaration.many is None:
            return {}
        snapshot = scope.snapshot()
        about_to(Step.CREATOR)
        with scope.run(*calls) as run:
            values = prop.declaration.create_many(instance, list(readings))
            encoded = {
                item: scope.cache.serializer.encode(values[item], prop.name)
                for item in readings
                if item in values
            }
        judge(scope, run)
        return {
            item: Computed(scope, readings[item], run, each, snapshot, readings[item].claim)
            for item, each in encoded.items()
        }

    def wait(self) -> None:
        """Wait for what other callers compute."""
        for item in self._awaited:
            self.entries[item] = self._readings[item].awaited(self._claims[item])

    def leave(self) -> None:
        """Give up all claims, so that nobody waits for them."""
        self._scope.cache.shared_tier.leave_many(list(self._claims.values()))
