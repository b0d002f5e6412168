"""Forms that no other site can send in a visitor's name.

A host that knows its users by a cookie gets the cookie with whatever form a foreign page lets
them send. Two things tell such a form, each by itself:

- The browser says where it comes from, in ``Sec-Fetch-Site`` or in ``Origin``. See "Cross-Site
  Request Forgery Prevention" (OWASP), "Fetch Metadata". Pages of other hosts of the same site are
  foreign too: in a site of many tenants, each host is somebody else's.
- A form of ours has a token, which only those know who can read our page. It says until when it
  is good, and is signed with that, the visitor, and what the form does. So nothing is kept of a
  visitor.

This module does not know what the forms do.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from webob.exc import HTTPForbidden

from ...core.cache import OrmCache
from ...redis_client.client import hash_tag
from ...tiers.shared import RedisTier

#: The name of the field with the token.
FIELD = 'token'

#: Seconds for which a form can be sent.
LIFETIME = 12 * 3600

#: Seconds after which all processes take another secret.
SECRET_LIFETIME = 30 * 24 * 3600

#: What a form does, and with what.
Deed: TypeAlias = tuple[str, ...]

#: The secrets of caches that are used by one process alone.
_OWN: WeakKeyDictionary[OrmCache, bytes] = WeakKeyDictionary()


class ForgedForm(HTTPForbidden):
    """A form was sent from elsewhere, or too late."""


def secret_of(cache: OrmCache) -> bytes:
    """Return the secret of the cache's forms, the same in all processes that share its store.

    :raises StoreUnreachable: if the store can't be reached.
    """
    tier = cache.shared_tier
    if not isinstance(tier, RedisTier):
        return _OWN.setdefault(cache, secrets.token_bytes())
    key = hash_tag(cache.settings.namespace, '') + ':inspector'
    client = tier.client.at(key)

    def kept() -> bytes | None:
        found: Any = client.ask(lambda: client.get(key))
        return bytes(found) if found else None

    if (found := kept()) is not None:
        return found
    new = secrets.token_bytes()
    client.ask(lambda: client.set(key, new, nx=True, ex=SECRET_LIFETIME))
    # another process may have been faster; a full Redis may have dropped it again
    return kept() or new


def token(secret: bytes, user: str, deed: Deed, until: int | None = None) -> str:
    """Return the token of a form.

    :param user: whose page it is on; ``''`` if the host does not know its visitors.
    :param deed: what the form does; its address would not do, which a proxy may change.
    :param until: the end of its life, in seconds since 1970; by default :data:`LIFETIME` from now.
    """
    until = int(time.time()) + LIFETIME if until is None else until
    signed = json.dumps([until, user, *deed]).encode()
    return f'{until}.{hmac.new(secret, signed, hashlib.sha256).hexdigest()}'


def check(request: Any, secret: bytes, deed: Deed) -> None:
    """Refuse a form that did not come from our page, or came too late.

    :param deed: what it does.
    :raises ForgedForm: if so; it says which, and what to do.
    """
    if not is_same_origin(request):
        raise ForgedForm('The form was sent from another site.')
    given = field(request, FIELD)
    until, _, _ = given.partition('.')
    if not until.isascii() or not until.isdecimal() or len(until) > 12:
        raise ForgedForm('The form has no token, or a damaged one.')
    expected = token(secret, user_of(request), deed, int(until))
    if not hmac.compare_digest(given.encode(errors='replace'), expected.encode()):
        raise ForgedForm('The form has the token of another page, visitor or server.')
    if int(until) < time.time():
        raise ForgedForm('The form was shown too long ago.')


def field(request: Any, name: str) -> str:
    """Return what was filled into a field of a form; '' if there is none.

    :raises ForgedForm: if the body is no form.
    """
    try:
        return str(request.POST.get(name, ''))
    except Exception as error:  # the parser raises many kinds for a damaged body
        raise ForgedForm('The form is damaged.') from error


def is_same_origin(request: Any) -> bool:
    """Return whether the browser says that our own page has sent the request, or says nothing."""
    site = request.headers.get('Sec-Fetch-Site')
    if site is not None:
        return site in ('same-origin', 'none')
    origin = request.headers.get('Origin')
    # a proxy that ends TLS hides the scheme, but not the host
    return origin is None or origin.partition('://')[2] == request.host


def user_of(request: Any) -> str:
    """Return who sends a request, as a text; ``''`` if the host does not know."""
    return str(getattr(request.identity, 'userid', None) or '')
