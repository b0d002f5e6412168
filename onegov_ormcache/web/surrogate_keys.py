"""Surrogate keys: opaque names of tags in the headers of responses, by which a CDN purges them.

A key is a keyed hash of namespace, schema and tag, so that it tells nothing to those who do not
have the secret. A response has the key of each of its tags. If these are too many, it has one that
each commit names. This module does not know how tags change, nor who is told of it.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from ..tags.snapshot import CODE_TAG

#: The headers that may have keys, each with what stands between two keys. ``Cache-Groups`` is a
#: list of strings in quotes (RFC 9875).
SEPARATORS = {'Cache-Tag': ',', 'Surrogate-Key': ' ', 'Cache-Groups': ', '}

#: The most keys of one response, in some 2,000 bytes of a header.
MAX_KEYS = 150

#: The most keys in ``Cache-Groups``: those who read it need not understand more.
MAX_GROUPS = 32

#: Stands for the tags of a response that has too many.
MANY = '#many'

#: Bytes of a key, before it is encoded as four characters for three bytes.
SIZE = 9

#: The least number of characters of a secret.
SECRET_LENGTH = 16


class SurrogateKeys:
    """The keys of one cache; made with it, and used by all threads.

    :param headers: the names of the headers, out of :data:`SEPARATORS`.
    :param namespace: of the cache.
    :param secret: the same in all processes.
    """

    def __init__(self, headers: Sequence[str], namespace: str, secret: str) -> None:
        self._headers = headers
        self._key = blake2b(secret.encode(errors='surrogatepass')).digest()
        self._namespace = namespace
        self._most = MAX_GROUPS if 'Cache-Groups' in headers else MAX_KEYS
        #: Returns the key of one tag of a place.
        self.key = lru_cache(20_000)(self._hashed)

    def __repr__(self) -> str:
        return f'<SurrogateKeys in {", ".join(self._headers) or "no header"}>'

    def of_change(self, place: str, tags: Collection[str]) -> frozenset[str]:
        """Return the keys of the responses that a change of these tags concerns.

        :param place: the schema that the tags belong to.
        """
        return frozenset(self.key(place, tag) for tag in (*tags, MANY))

    def of_response(self, tags: Mapping[str, Collection[str]]) -> Sequence[str]:
        """Return the keys of a response: those of its tags, and one for each place, which stands
        for all that may change there.

        :param tags: by place, each once.
        :return: none if even the places are too many.
        """
        if sum(map(len, tags.values())) + len(tags) > self._most:
            tags = dict.fromkeys(tags, (MANY,))
        keys = {self.key(place, tag) for place in tags for tag in (*tags[place], CODE_TAG)}
        # sorted, so that their order tells nothing either
        return sorted(keys) if len(keys) <= self._most else ()

    def add_to(self, response: Any, keys: Sequence[str]) -> None:
        """Add keys to the headers of a response, after those that its view has set."""
        for name in self._headers if keys else ():
            own = response.headers.getall(name)
            response.headers[name] = SEPARATORS[name].join((*own, _written(name, keys)))

    def _hashed(self, place: str, tag: str) -> str:
        # neither a namespace nor a schema has a NUL
        text = '\0'.join((self._namespace, place, tag)).encode(errors='surrogatepass')
        digest = blake2b(text, key=self._key, digest_size=SIZE).digest()
        return urlsafe_b64encode(digest).decode()


def _written(name: str, keys: Sequence[str]) -> str:
    """Return keys as they stand in a header."""
    quoted = [f'"{key}"' for key in keys] if name == 'Cache-Groups' else keys
    return SEPARATORS[name].join(quoted)


def named_headers(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of headers in the setting ``surrogate_keys``, in its order."""
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def are_headers(value: Any) -> bool:
    """Return whether a value is one that the setting ``surrogate_keys`` may have."""
    try:
        names = named_headers(value)
        is_known = all(name in SEPARATORS for name in names)
    except TypeError:
        return False
    return is_known and (value is None or bool(names)) and len(set(names)) == len(names)
