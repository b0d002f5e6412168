"""The search for one value in the process tier and the shared tier.

This module does not know how a value is computed, nor whether the shared tier is on Redis or in
memory.
"""

from __future__ import annotations

from time import monotonic as now
from typing import Any

from ..errors import StoreUnreachable, UndecodableValue, ValueNotCacheable
from ..steps import Step, about_to
from ..tags.snapshot import CODE_TAG
from ..tiers.claims import Claim
from ..tiers.frozen import freeze
from ..tiers.process import Slot, StoredValue
from ..tiers.request import TierEntry
from ..tiers.serializer import Encoded
from .computing import report_undecodable
from .properties import Call
from .protocols import LookupScope
from .recording import Tier


class Lookup:
    """The search for one value in the process tier and the shared tier.

    Made for one read or prefetch of a value that the request tier does not have.
    """

    def __init__(self, scope: LookupScope, call: Call) -> None:
        self.scope = scope
        self.call = call
        self.prop = call.prop
        self.key: str = call.key
        #: The tier that had the value; ``'creator'`` if none had it.
        self.tier: Tier = 'creator'
        #: The tags of the values that were found and that this transaction may not use.
        self.unusable: frozenset[str] = frozenset()

    def in_process(self) -> TierEntry | None:
        """Return the value from the process tier; None if it has none that this transaction
        may use."""
        about_to(Step.PROCESS_TIER)
        slot = self.scope.process_tier.get(self.key)
        if slot is None:
            return None
        if not self.holds(slot.stored):
            self.unusable |= slot.stored.stamp.keys()
            return None
        shared = self._is_immutable(slot.stored.encoded)
        value = slot.value if shared else self.decode(slot.stored.encoded.data)
        self.tier = 'process'
        return self._found(slot.stored, value)

    def in_shared(self, claim: Claim | None = None) -> TierEntry | None:
        """Return the value from the shared tier; None if it has none that this transaction
        may use.

        :param claim: claims the computation of a value that is not there.
        """
        about_to(Step.SHARED_TIER)
        try:
            if claim is not None:
                stored = claim.look()
            else:
                stored = self.scope.cache.shared_tier.get(self.scope.schema, self.key)
        except StoreUnreachable:
            self.scope.store_lost()
            return None
        return None if stored is None else self.take(stored)

    def take(self, stored: StoredValue) -> TierEntry | None:
        """Take a value that the shared tier has: keep it in the process tier and return it.

        Returns None if this transaction may not use it, or if it can't be decoded.
        """
        if not self.holds(stored):
            self.unusable |= stored.stamp.keys()
            return None
        try:
            value = self.decode(stored.encoded.data)
        except (UndecodableValue, ValueNotCacheable, RecursionError) as error:
            report_undecodable(self.prop, error)
            return None
        self.keep_in_process(stored, value)
        self.tier = 'shared'
        return self._found(stored, value)

    def is_missing(self) -> bool:
        """Return True if this transaction may use a cached value, and the process tier has none
        that it may use."""
        if self.scope.blocks(self.call.tags):
            return False
        slot = self.scope.process_tier.get(self.key)
        return slot is None or not self.holds(slot.stored)

    def holds(self, stored: StoredValue) -> bool:
        """Return whether this transaction may use the stored value.

        It may if the value has not expired, its stamp has all tags of the call and agrees with
        the snapshot, and the scope blocks none of its tags.
        """
        if stored.expires is not None and now() >= stored.expires:
            return False
        # another release may have stored it, for longer
        longest = self.prop.longest
        if longest is not None and (stored.expires is None or stored.expires > now() + longest):
            return False
        return (
            self.call.tags <= stored.stamp.keys()
            and self.scope.snapshot().agrees(stored.stamp)
            and not self.scope.blocks(stored.stamp.keys())
        )

    def keep_in_process(self, stored: StoredValue, value: Any) -> None:
        """Keep a value of the shared tier in the process tier, too."""
        held = value if self._is_immutable(stored.encoded) else None
        self.scope.process_tier[self.key] = Slot(stored, held)

    def decode(self, data: bytes) -> Any:
        """Decode a value, and make it immutable if the property is declared ``frozen``."""
        value = self.prop.declaration.checked(self.scope.cache.serializer.decode(data))
        return freeze(value, self.prop.name) if self.prop.declaration.frozen else value

    def _found(self, stored: StoredValue, value: Any) -> TierEntry:
        self.scope.torn_pages.found(stored.stamp)
        self.scope.returned.update(stored.stamp)
        return TierEntry(
            value=value,
            tags=frozenset(stored.stamp.keys() - {CODE_TAG}),
            encoded=stored.encoded,
            snapshot_number=self.scope.snapshot_number,
            storable=True,
            expires=stored.expires,
            varies=frozenset(self.prop.declaration.varies),
        )

    def _is_immutable(self, encoded: Encoded) -> bool:
        """Return whether requests can share the value, because it is immutable or the property
        is declared ``frozen``."""
        return encoded.immutable or self.prop.declaration.frozen
