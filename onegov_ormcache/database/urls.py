"""The URL of the database: how it is parsed, and how it is shown in messages.

Neither SQLAlchemy's errors nor its text of a URL keep a password for themselves: the former have
parts of a URL that is malformed, the latter has ``?password=``. So no message has a part of a URL
that could not be parsed, and nothing here raises while it handles such an error.

This module opens no connection.
"""

from __future__ import annotations

import re

from sqlalchemy import URL
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from ..errors import DatabaseUnreachable

#: The options of a URL that a message may have.
SHOWN = frozenset({'host', 'port'})

#: What is shown in place of a password.
HIDDEN = '***'


def parse(dsn: str | URL, name: str = 'dsn') -> URL:
    """Return the URL, parsed.

    :param name: the setting that it is the value of.
    :raises DatabaseUnreachable: if it can't be parsed, or only in a way that takes a part of the
        password for something else.
    """
    if isinstance(dsn, URL):
        return dsn
    try:
        url = make_url(dsn)
    except (ArgumentError, ValueError):
        url = None
    if url is None or not _is_whole(url, dsn):
        raise DatabaseUnreachable(
            f'{name} (not shown, it may have a password): it can not be parsed; if user or '
            'password have special characters, write them as %23 (#), %26 (&), %2F (/), %3A (:), '
            '%3F (?) and %40 (@)'
        )
    return url


def shown(url: URL) -> str:
    """Return the text of a URL for messages, without anything that could be secret."""
    query = {name: value for name, value in url.query.items() if name in SHOWN}
    return url.set(query=query).render_as_string(hide_password=True)


def without_password(text: str, url: URL) -> str:
    """Return a driver's message without the passwords of the URL."""
    options = [value for name, value in url.query.items() if 'pass' in name]
    for secret in (url.password, *options):
        if secret:
            text = text.replace(str(secret), HIDDEN)
    return text


def _is_whole(url: URL, dsn: str) -> bool:
    """Return whether all parts end where they should, and not within a password.

    SQLAlchemy's regular expression lets user and password have any character, and looks for a
    later ``@`` if that gives a host.
    """
    rest = dsn.partition('://')[2]
    if url.username is not None:
        user, _, rest = rest.partition('@')
        if re.search(r'\?\w+=', user):  # an option with an "@" in its value
            return False
    address, _, query = rest.partition('?')
    host = url.host or ''
    return (
        '@' not in address
        and address.removeprefix('[').startswith(host)
        and all('=' in option for option in query.split('&') if option)
    )
