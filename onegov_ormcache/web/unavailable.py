"""The answer to a request that could not be served now, and may be served soon."""

from __future__ import annotations

from webob.exc import HTTPServiceUnavailable

from ..errors import DatabaseUnreachable, OrmCacheError, StoreUnreachable

#: Seconds after which the client should try again.
RETRY_AFTER = 1

#: The errors of servers that can't be reached.
UNREACHABLE: tuple[type[OrmCacheError], ...] = (DatabaseUnreachable, StoreUnreachable)


def unavailable() -> HTTPServiceUnavailable:
    """Return the answer 503, which asks the client to try again."""
    return HTTPServiceUnavailable(headers={'Retry-After': str(RETRY_AFTER)})
