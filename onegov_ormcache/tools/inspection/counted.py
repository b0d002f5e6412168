"""What was counted of a tenant. This module prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .sites import Site


@dataclass(frozen=True)
class Counted:
    """What all processes have counted of one tenant; empty if nobody counts."""

    #: The number of changes, by tag.
    changes: Mapping[str, int] = field(default_factory=dict)
    #: The Unix time of the last change, by tag.
    last_change: Mapping[str, float] = field(default_factory=dict)


def counted(site: Site, tenant: str) -> Counted:
    """Return what was counted of a tenant.

    :raises StoreUnreachable: if Redis can't be reached.
    """
    return Counted()
