"""Applications of web frameworks, as hosts; the modules of their tests make them."""

from __future__ import annotations

from typing import Any, Protocol

from sqlalchemy import Engine

from onegov_ormcache import OrmCache


class WebTown(Protocol):
    """An application, which may stand for a process. A test's module names its own `TOWN`."""

    engine: Engine
    cache: OrmCache

    def get(self, tenant: str) -> Any:
        """Get what the application shows."""

    def tiers(self, tenant: str) -> list[str | None]:
        """The tiers from which a request gets its values."""
        with self.cache.recording() as events:
            self.get(tenant)
        return [event.tier for event in events]

    def close(self) -> None:
        """Close the cache and all connections."""
        self.cache.close()
        self.engine.dispose()
