"""Where the numbers of all processes are kept: the protocol, and a store in memory."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..forks import OwnLock
from .fields import COMMITS, Delta, add_counts, by_hour, has_room

#: Seconds of a slot.
HOUR = 3600

#: The number of hours of which the numbers are kept.
HOURS = 24

#: The name under which the sums over all tenants are kept. No tenant has it.
ALL_TENANTS = ''

#: Seconds after which the numbers of a tenant are dropped, if nobody adds any.
LIFETIME = 7 * 24 * 3600

#: The most tenants of which a store in memory keeps numbers; those of the others are dropped.
MAX_TENANTS = 1000


class StatisticsStore(Protocol):
    """Keeps the sums over all processes; used by all threads."""

    def add(self, deltas: dict[str, Delta]) -> None:
        """Add what a process has counted, by tenant, and take out of the dict what was added.

        :raises StoreUnreachable: if the store can't be reached. What is left in the dict was not
            added.
        """

    def tenants(self) -> list[str]:
        """Return the tenants of which there are numbers, in order."""

    def fields(self, tenant: str) -> tuple[Mapping[str, Any], Sequence[str]]:
        """Return the numbers and texts of a tenant by field, and the latest commits."""

    def slots(self, tenant: str) -> list[tuple[float, Mapping[str, Any]]]:
        """Return the numbers by field of each hour that has any, oldest first."""


class _Tenant:
    """The numbers of one tenant."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.commits: deque[str] = deque(maxlen=COMMITS)
        self.slots: dict[int, dict[str, Any]] = {}


class MemoryStatistics:
    """The numbers of a process that is alone; see :class:`StatisticsStore`."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._lock = OwnLock()

    def add(self, deltas: dict[str, Delta], hour: int | None = None) -> None:
        """See :meth:`StatisticsStore.add`.

        :param hour: in which it was counted, in hours since 1970; None: the present one.
        """
        hour = int(time.time() // HOUR) if hour is None else hour
        with self._lock.present:
            while deltas:
                name, delta = deltas.popitem()
                tenant = self._tenants.setdefault(name, _Tenant())
                self._tenants.move_to_end(name)
                if len(self._tenants) > MAX_TENANTS + 1:
                    self._tenants.popitem(last=False)
                add_counts(tenant.fields, delta.counts)
                add_counts(tenant.slots.setdefault(hour, {}), by_hour(delta.counts))
                for field, text in delta.texts.items():
                    if has_room(tenant.fields, field):
                        tenant.fields[field] = text
                tenant.commits.extendleft(delta.commits)
                # also those of a clock that was set back
                tenant.slots = {
                    at: slot for at, slot in tenant.slots.items() if 0 <= hour - at < HOURS
                }

    def tenants(self) -> list[str]:
        with self._lock.present:
            return sorted(name for name in self._tenants if name != ALL_TENANTS)

    def fields(self, tenant: str) -> tuple[Mapping[str, Any], Sequence[str]]:
        with self._lock.present:
            found = self._tenants.get(tenant)
            return (dict(found.fields), list(found.commits)) if found is not None else ({}, [])

    def slots(self, tenant: str) -> list[tuple[float, Mapping[str, Any]]]:
        with self._lock.present:
            found = self._tenants.get(tenant)
            slots = sorted(found.slots.items()) if found is not None else []
            return [(float(hour * HOUR), dict(fields)) for hour, fields in slots]
