"""The settings of an application's section ``orm_cache``: for the cache, and for the tween.

This module knows nothing of how the tween uses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from ..core.settings import SECTION, OrmCacheSettings, Rule, is_whole
from ..errors import ConfigurationError
from .surrogate_keys import SECRET_LENGTH, SEPARATORS, are_headers

#: A token of RFC 9110 that begins with a letter, as a regular expression.
TOKEN = r'[A-Za-z][A-Za-z0-9._-]{0,99}'


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
    #: Use and store responses of views with the option ``cached``; or a function of the request
    #: that says whether to do so for this one.
    cached_responses: bool | Callable[[Any], bool] = True
    #: The name of this cache in the header ``Cache-Status`` of cached responses; None: no header.
    cache_status: str | None = None
    #: Tell in the header ``Server-Timing`` what the cache has done for the request.
    server_timing: bool = False
    #: The names of headers in which cached responses that a CDN may store have their surrogate
    #: keys: one or several of ``'Cache-Tag'``, ``'Surrogate-Key'`` and ``'Cache-Groups'``.
    surrogate_keys: str | Sequence[str] | None = None
    #: The secret of which the surrogate keys are made, the same in all processes.
    surrogate_secret: str | None = field(default=None, repr=False)
    #: ``(request, response) -> bool``: True rolls back. With None, every response commits.
    commit_veto: Callable[[Any, Any], bool] | None = veto_errors

    def uses_responses(self, request: Any) -> bool:
        """Return whether a request may be answered by a cached response."""
        uses = self.cached_responses
        return uses if isinstance(uses, bool) else bool(uses(request))

    @classmethod
    def read(cls, section: Mapping[str, Any], where: str) -> Self:
        settings = super().read(section, where)
        if settings.surrogate_keys is not None and settings.surrogate_secret is None:
            raise ConfigurationError(
                f'{where}: setting {SECTION}.surrogate_keys needs {SECTION}.surrogate_secret, '
                f'a text of {SECRET_LENGTH} or more characters that nobody can guess'
            )
        return settings

    @classmethod
    def rules(cls) -> tuple[Rule, ...]:
        return super().rules() + RULES

    @classmethod
    def by_path(cls) -> tuple[str, ...]:
        return (*super().by_path(), 'commit_veto', 'cached_responses')


RULES: tuple[Rule, ...] = (
    ('tween', lambda v: isinstance(v, bool), 'True or False'),
    ('attempts', lambda v: is_whole(v) and v >= 1, 'a whole number, 1 or more'),
    ('check_torn_pages', lambda v: isinstance(v, bool), 'True or False'),
    (
        'cached_responses',
        lambda v: isinstance(v, bool) or callable(v),
        'True, False, or a function (request)',
    ),
    (
        'cache_status',
        lambda v: v is None or (isinstance(v, str) and re.fullmatch(TOKEN, v) is not None),
        'a name of letters, digits, "-", "." and "_", or None',
    ),
    ('server_timing', lambda v: isinstance(v, bool), 'True or False'),
    (
        'surrogate_keys',
        are_headers,
        f'one of {", ".join(SEPARATORS)}, or a sequence of these, or None',
    ),
    (
        'surrogate_secret',
        lambda v: v is None or (isinstance(v, str) and len(v) >= SECRET_LENGTH),
        f'a text of {SECRET_LENGTH} or more characters, or None',
    ),
    ('commit_veto', lambda v: v is None or callable(v), 'a function (request, response) or None'),
)
