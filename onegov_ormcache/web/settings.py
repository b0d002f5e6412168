"""The settings of the section ``orm_cache``: those of the cache, and those of the tween."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.settings import OrmCacheSettings, Rule, is_whole


def veto_errors(request: Any, response: Any) -> bool:
    """The default ``commit_veto``: responses of 4xx and 5xx roll back."""
    return bool(response.status_code >= 400)


@dataclass(frozen=True)
class AppSettings(OrmCacheSettings):
    """The validated settings of one application class, made when it is committed."""

    #: How often the tween tries a request whose transaction meets a conflict.
    attempts: int = 3
    #: ``(request, response) -> bool``: True rolls back; None never does.
    commit_veto: Callable[[Any, Any], bool] | None = veto_errors

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return super().rules() + RULES


RULES: tuple[Rule, ...] = (
    ('attempts', lambda v: is_whole(v) and v >= 1, 'a whole number, 1 or more'),
    ('commit_veto', lambda v: v is None or callable(v), 'a function (request, response) or None'),
)
