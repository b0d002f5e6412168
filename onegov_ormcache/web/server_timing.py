"""The header ``Server-Timing``: what the cache has done for a request, for the browser's tools.

It is added when the response leaves, so a cached response is stored without it. A response that a
shared cache is told to store has none: it would tell later visitors of the first one's request.
See "Server Timing" (W3C).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.scope import RequestScope
from ..statistics.fields import SEPARATOR
from .surrogate_keys import SEPARATORS

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

NAME = 'Server-Timing'

#: The headers, in small letters, that tell a shared cache to store a response, whatever they say,
#: unless ``Cache-Control`` forbids it.
FOR_SHARED_CACHES = frozenset({'expires', *map(str.lower, SEPARATORS)})

#: The ends of those that it follows instead of ``Cache-Control``, see RFC 9213: that may be
#: meant for browsers alone. A CDN has its own, as in ``Cloudflare-CDN-Cache-Control``.
TARGETED = ('cdn-cache-control', 'surrogate-control', 'x-accel-expires', 'edge-control')

#: The directives of ``Cache-Control`` that let a shared cache answer others by a response.
_SHARED = re.compile(r'(?:^|[\s,])(?:public|s-maxage|max-age\s*=\s*"?0*[1-9])', re.IGNORECASE)

#: Those that forbid it.
_PRIVATE = re.compile(r'(?:^|[\s,])(?:private|no-store)(?:$|[\s,])', re.IGNORECASE)


def timed(scope: RequestScope, start_response: StartResponse) -> StartResponse:
    """Return a function that starts a response with the header.

    :param scope: the scope of the request; it keeps its counts from now on.
    """
    scope.counted = {}

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        if not is_for_shared_caches(headers):
            headers = [*headers, (NAME, timing(scope.counted_so_far()))]
        return start_response(status, headers, *error)

    return start


def timing(counts: Mapping[str, float]) -> str:
    """Return the header's value.

    :param counts: what the scope has counted, by field.
    """
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for field, number in counts.items():
        _, counter, _ = field.split(SEPARATOR, 2)
        group, _, reason = counter.partition(':')
        if group == 'bypasses':
            reasons[reason] += int(number)
        else:
            sums[counter] += number  # type: ignore[assignment]
    hits = sums['process_hits'] + sums['shared_hits']
    told = [f'cache;desc="hits {hits:.0f}, misses {sums["misses"]:.0f}"']
    if sums['runs']:
        told.append(f'creators;dur={sums["run_seconds"] * 1000:.1f}')
    if sums['waits']:
        told.append(f'waits;dur={sums["wait_seconds"] * 1000:.1f}')
    if reasons:
        text = ', '.join(f'{reason} {number}' for reason, number in sorted(reasons.items()))
        told.append(f'bypasses;desc="{text}"')
    return ', '.join(told)


def is_for_shared_caches(headers: Sequence[tuple[str, str]]) -> bool:
    """Return whether the headers of a response tell a shared cache, such as a CDN, to answer
    others by it."""
    if any(name.lower().endswith(TARGETED) for name, _ in headers):
        return True
    control = ', '.join(value for name, value in headers if name.lower() == 'cache-control')
    if _PRIVATE.search(control):
        return False
    return bool(_SHARED.search(control)) or any(
        name.lower() in FOR_SHARED_CACHES for name, _ in headers
    )
