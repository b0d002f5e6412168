"""Responses as they are stored: what may be stored of one, and how it is sent again.

A response is stored as a tuple of plain values, with a hash that is also its ``ETag``. This module
knows WebOb's responses. It does not know views, keys or tiers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import webob
from webob.exc import WSGIHTTPException, status_map

from ..errors import UndecodableValue

#: The headers that a 304 has, of those of the response that it stands for; RFC 9110, section
#: 15.4.5.
NOT_MODIFIED = frozenset(('cache-control', 'content-location', 'date', 'etag', 'expires', 'vary'))

#: A weak or strong tag, without its mark as weak; RFC 9110, section 8.8.3.
ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*")')

#: Takes the place of a response that is not stored.
NOTHING: tuple[Any, ...] = ()


class StoredResponse(NamedTuple):
    """A response as it is stored."""

    #: The status with its reason: ``'200 OK'``.
    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    #: ``'response'``; for one of WebOb's exceptions ``'returned'`` or ``'raised'``.
    kind: str
    #: The two texts of an exception of which WebOb makes the body, when it is sent.
    detail: str | None
    comment: str | None
    #: A hash of all this and of the key, which makes the ``ETag``.
    tag: str

    @property
    def code(self) -> int:
        """The status as a number."""
        return int(self.status[:3])


def capture(response: Any, key: str, *, was_raised: bool) -> StoredResponse:
    """Return a response as it is stored.

    :param response: one for which :func:`why_not` has no reason.
    :param key: the key under which it is stored: no two keys have a common ``ETag``.
    """
    kind, detail, comment = 'response', None, None
    if isinstance(response, WSGIHTTPException):
        kind = 'raised' if was_raised else 'returned'
        detail, comment = _texts(response)
    headers = tuple((str(name), str(value)) for name, value in response.headerlist)
    parts = response.status, headers, b''.join(response.app_iter), kind, detail, comment
    return StoredResponse(*parts, _tag(key, parts))


def checked(value: Any) -> Any:
    """Return a value that was stored, as a :class:`StoredResponse`.

    :raises UndecodableValue: if it is none, or is damaged.
    """
    if value == NOTHING:
        return NOTHING
    try:
        found = StoredResponse(*value)
        key = found.tag.partition('-')[0]
        is_whole = _tag_of_hash(key, value[:-1]) == found.tag
    except (TypeError, ValueError, AttributeError):
        is_whole = False
    if not is_whole:
        raise UndecodableValue('the bytes of a stored response are damaged')
    return found


def _tag(key: str, parts: tuple[Any, ...]) -> str:
    digest = blake2b(key.encode(errors='surrogatepass'), digest_size=12).hexdigest()
    return _tag_of_hash(digest, parts)


def _tag_of_hash(digest: str, parts: tuple[Any, ...]) -> str:
    status, headers, body, *rest = parts
    found = blake2b(digest_size=16)
    found.update(repr((digest, status, headers, rest)).encode(errors='surrogatepass'))
    found.update(body)
    return f'{digest}-{found.hexdigest()}'


def why_not(
    response: Any,
    statuses: Collection[int],
    headers: Iterable[str],
    max_size: int | None,
    *,
    is_private: bool,
) -> str | None:
    """Return why a response can't be stored; None if it can.

    :param statuses: the statuses that may be stored.
    :param headers: the request headers that it varies by.
    :param max_size: the most bytes that its body may have; None: as many as any value.
    :param is_private: True if it is stored for one user alone.
    """
    if response.status_code not in statuses:
        return f'its status is {response.status_code}'
    if type(response).__call__ is not webob.Response.__call__ and not _can_be_made(response):
        kind = type(response).__qualname__
        return f'it is a {kind}, which is more than its status, headers and body'
    if response.conditional_response:
        return 'it answers conditions by itself (conditional_response)'
    if 'Set-Cookie' in response.headers:
        return 'it sets a cookie'
    # not by WebOb's parser: it would take a header that it does not understand for none
    control = {
        each.partition('=')[0].strip().lower()
        for each in ','.join(response.headers.getall('Cache-Control')).split(',')
    }
    if 'no-store' in control:
        return 'it has the header Cache-Control: no-store'
    if 'private' in control and not is_private:
        return 'it has the header Cache-Control: private, and is the same for several users'
    known = {name.lower() for name in headers}
    for name in ','.join(response.headers.getall('Vary')).split(','):
        if name.strip() and name.strip().lower() not in known:
            return f'it has the header Vary: {name.strip()}, by which it does not differ'
    if not isinstance(response.app_iter, (list, tuple)):
        return 'its body is streamed'
    size = sum(map(len, response.app_iter))
    if max_size is not None and size > max_size:
        return f'its body has {size:,} bytes, more than max_size={max_size:,}'
    return None


def is_streamed(response: Any) -> bool:
    """Return whether the body of a response is made while it is sent."""
    return not isinstance(response.app_iter, (list, tuple))


def _can_be_made(response: Any) -> bool:
    """Return whether an exception of WebOb can be made anew of its status and texts."""
    return (
        isinstance(response, WSGIHTTPException)
        and status_map.get(response.status_code) is type(response)
        and not getattr(response, 'add_slash', False)
        and type(response).body_template_obj is response.body_template_obj
        and all(isinstance(text, (str, type(None))) for text in _texts(response))
        and not _given(response) - _given(type(response)())
    )


def _given(response: WSGIHTTPException) -> set[str]:
    return {name for name in vars(response) if not name.startswith('_')}


def _texts(response: WSGIHTTPException) -> tuple[Any, Any]:
    return response.detail, response.comment


def made(stored: StoredResponse, also: Iterable[tuple[str, str]] = ()) -> Any:
    """Return a new response, or a new exception.

    :param also: headers beside those that are stored.
    """
    headers = [*stored.headers, *also]
    if stored.kind == 'response':
        return webob.Response(status=stored.status, headerlist=headers, app_iter=[stored.body])
    made = status_map[stored.code](detail=stored.detail, comment=stored.comment)
    made.headerlist = headers
    made.app_iter = [stored.body]
    return made


def headers_beside(
    stored: StoredResponse, headers: Collection[str], *, is_private: bool
) -> list[tuple[str, str]]:
    """Return the headers that a browser needs to ask whether its copy is still right.

    A header that the view has set itself stays as it is.

    :param headers: the request headers that the response varies by.
    :param is_private: True if it differs by the user or the user's role.
    """
    own = {name.lower() for name, _ in stored.headers}
    added = []
    if 'cache-control' not in own:
        added.append(('Cache-Control', 'private, no-cache' if is_private else 'no-cache'))
    if stored.code == 200 and 'etag' not in own:
        added.append(('ETag', f'"{stored.tag}"'))
    if headers:
        added.append(('Vary', ', '.join(headers)))
    return added


def not_modified(response: Any, also: Collection[str] = ()) -> Any:
    """Return the 304 that stands for a response.

    :param also: names of further headers that it has, in small letters.
    """
    kept = [
        (name, value) for name, value in response.headerlist
        if name.lower() in NOT_MODIFIED or name.lower() in also
    ]  # fmt: skip
    return webob.Response(status=304, headerlist=kept, app_iter=[])


def is_current(given: str | None, response: Any) -> bool:
    """Return whether the client has the response already.

    :param given: the request's header ``If-None-Match``.
    """
    if given is None or response.status_code != 200 or not response.headers.get('ETag'):
        return False
    own = ENTITY_TAG.fullmatch(response.headers['ETag'])
    # a view may set a tag without quotes, of which others can be parts
    return own is not None and (given.strip() == '*' or own[1] in ENTITY_TAG.findall(given))
