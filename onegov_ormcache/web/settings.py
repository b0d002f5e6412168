"""The settings of an application's section ``orm_cache``: for the cache, and for the tween.

This module knows nothing of how the tween uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.settings import OrmCacheSettings, Rule, is_whole


def veto_errors(request: Any, response: Any) -> bool:
    """Return True for responses of 4xx and 5xx, which roll back: the default ``commit_veto``."""
    return bool(response.status_code >= 400)


@dataclass(frozen=True)
class AppSettings(OrmCacheSettings):
    """The validated settings of one application class, made when it is committed."""

    #: Run a transaction for each request. A host with transactions of its own needs no other.
    tween: bool = True
    #: The number of attempts, the first included, that the tween makes at a request whose
    #: transactions meet conflicts.
    attempts: int = 10
    #: Try a request again if two of its values belong to different moments, at most twice
    #: (promise P4 of the documentation).
    check_torn_pages: bool = True
    #: ``(request, response) -> bool``: True rolls back. With None, every response commits.
    commit_veto: Callable[[Any, Any], bool] | None = veto_errors

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return super().rules() + RULES


RULES: tuple[Rule, ...] = (
    ('tween', lambda v: isinstance(v, bool), 'True or False'),
    ('attempts', lambda v: is_whole(v) and v >= 1, 'a whole number, 1 or more'),
    ('check_torn_pages', lambda v: isinstance(v, bool), 'True or False'),
    ('commit_veto', lambda v: v is None or callable(v), 'a function (request, response) or None'),
)
