"""The URL of Redis: which servers it names, with which options, and how it is shown in messages.

A wrong URL is a :class:`.ConfigurationError` whose message has no part of the URL that could
belong to a password. The same holds for its causes: there are none. So nothing here raises while
it handles an error of a parser, whose text has the URL.

This module opens no connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.connection import parse_url

from ..errors import ConfigurationError


class Kind(Enum):
    """The kind of servers that a URL names."""

    #: One server, or a proxy that looks like one.
    SERVER = ''
    #: Servers that Sentinels watch.
    SENTINEL = 'sentinel'
    #: A Redis Cluster.
    CLUSTER = 'cluster'


#: What a URL may begin with, and the kind of servers that it names then.
SCHEMES = {
    'redis': Kind.SERVER, 'rediss': Kind.SERVER, 'unix': Kind.SERVER,
    'redis+sentinel': Kind.SENTINEL, 'rediss+sentinel': Kind.SENTINEL,
    'redis+cluster': Kind.CLUSTER, 'rediss+cluster': Kind.CLUSTER,
}  # fmt: skip

#: The options of redis-py that a URL may have. Those that change replies are not among them.
OPTIONS = frozenset({
    'client_name', 'db', 'health_check_interval', 'max_connections', 'password', 'protocol',
    'retry_on_timeout', 'socket_connect_timeout', 'socket_keepalive', 'socket_timeout',
    'username',
})  # fmt: skip

#: Further options, for TLS.
TLS_OPTIONS = frozenset({
    'ssl_ca_certs', 'ssl_ca_data', 'ssl_ca_path', 'ssl_cert_reqs', 'ssl_certfile',
    'ssl_check_hostname', 'ssl_ciphers', 'ssl_keyfile', 'ssl_min_version', 'ssl_password',
})  # fmt: skip

#: Further options, for the connections to Sentinels.
SENTINEL_OPTIONS = frozenset({'sentinel_username', 'sentinel_password', 'sentinel_ssl'})

#: The ports of servers and of Sentinels, if the URL names none.
PORT, SENTINEL_PORT = 6379, 26379

#: A host, and a port if there is one. A host has no character that ends a user or a password.
NODE = re.compile(r'(?P<host>[\w.-]*|\[[0-9A-Fa-f:.]+(%\w+)?\])(:(?P<port>\d{1,5}))?')

#: A path that names the number of a database, or nothing.
DATABASE = re.compile(r'/?(?P<db>\d*)')

#: A path that names a service, and maybe the number of a database.
SERVICE = re.compile(r'/(?P<service>[^/]+)(/(?P<db>\d*))?')

QUOTE = (
    'if user or password have special characters, write them as %23 (#), %2F (/), %3A (:), '
    '%3F (?) and %40 (@)'
)


@dataclass(frozen=True)
class Address:
    """What a URL says; its text and repr have neither user nor password."""

    kind: Kind
    #: True if the servers are reached by TLS.
    tls: bool
    #: Host and port of each node: the server, the Sentinels, or nodes of the cluster.
    nodes: tuple[tuple[str, int], ...]
    #: The path of the server's Unix socket, instead of host and port.
    path: str
    #: The name by which the Sentinels know the servers.
    service: str
    #: Keyword arguments of redis-py's connections to servers, without host and port.
    options: dict[str, Any] = field(repr=False)
    #: Keyword arguments of the connections to Sentinels that differ from ``options``.
    sentinel_options: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        if self.path:
            return f'unix://{self.path}'
        scheme = f'redis{"s" if self.tls else ""}{"+" if self.kind.value else ""}{self.kind.value}'
        nodes = ','.join(
            f'[{host}]:{port}' if ':' in host else f'{host}:{port}' for host, port in self.nodes
        )
        service = f'/{self.service}' if self.service else ''
        database = '' if self.kind is Kind.CLUSTER else f'/{self.options.get("db", 0)}'
        return f'{scheme}://{nodes}{service}{database}'


class _WrongUrl(Exception):
    """What is wrong with a URL, in words that have no part of it."""


def parse(url: str) -> Address:
    """Return what a URL says.

    :param url: the setting ``redis_url``.
    :raises ConfigurationError: if it is wrong, or has an option that is not known.
    """
    try:
        return _parsed(url)
    except _WrongUrl as error:
        problem = str(error)
    except ValueError:  # of urlsplit, whose text has the URL
        problem = f'it can not be parsed; {QUOTE}'
    raise ConfigurationError(f'redis_url (not shown, it may have a password): {problem}')


def _parsed(url: str) -> Address:
    scheme = url.partition('://')[0].lower()
    kind = SCHEMES.get(scheme)
    if kind is None:
        known = ', '.join(f'{each}://' for each in SCHEMES)
        raise _WrongUrl(f'it begins with none of {known}')
    parts = urlsplit(url)
    if '#' in url or '@' in parts.path:
        raise _WrongUrl(f'it has a "#", or an "@" behind a "/"; {QUOTE}')
    tls = scheme.startswith('rediss')
    options = _options(parts.query, kind, tls)
    user, _, nodes = parts.netloc.rpartition('@')
    username, _, password = user.partition(':')
    for name, value in (('username', username), ('password', password)):
        if value:
            options[name] = unquote(value)
    path = service = ''
    if scheme == 'unix':
        if nodes or not parts.path:
            raise _WrongUrl(f'it needs a path, as in unix:///path; {QUOTE}')
        path = unquote(parts.path)
    else:
        service, database = _service(parts.path, kind)
        if database:
            options.setdefault('db', int(database))
    if kind is Kind.CLUSTER and options.pop('db', 0) != 0:
        raise _WrongUrl('a cluster has only the database 0')
    sentinel = {
        name.removeprefix('sentinel_'): options.pop(name)
        for name in SENTINEL_OPTIONS & options.keys()
    }
    found = () if path else tuple(_nodes(nodes, kind))
    return Address(kind, tls, found, path, service, options, sentinel)


def _nodes(text: str, kind: Kind) -> Iterable[tuple[str, int]]:
    """Yield host and port of each node."""
    parts = [text] if kind is Kind.SERVER else text.split(',')
    for part in parts:
        found = NODE.fullmatch(part)
        host = found['host'] if found else ''
        port = int(found['port'] or 0) if found else 0
        if found is None or port > 65535 or (found['port'] and not port):
            raise _WrongUrl(f'a host, or its port, is wrong; {QUOTE}')
        if not host and kind is not Kind.SERVER:
            raise _WrongUrl('a host is missing')
        default = SENTINEL_PORT if kind is Kind.SENTINEL else PORT
        yield host.strip('[]') or 'localhost', port or default


def _service(path: str, kind: Kind) -> tuple[str, str]:
    """Return the name of the service, if there are Sentinels, and the number of the database."""
    if kind is Kind.SENTINEL:
        if found := SERVICE.fullmatch(path):
            return unquote(found['service']), found['db'] or ''
        raise _WrongUrl('it must name the service: redis+sentinel://HOST,HOST/SERVICE or .../0')
    if found := DATABASE.fullmatch(path):
        return '', found['db']
    raise _WrongUrl(f'what comes after the "/" is no number of a database; {QUOTE}')


def _options(query: str, kind: Kind, tls: bool) -> dict[str, Any]:
    """Return the options, each as redis-py wants it."""
    known = OPTIONS | TLS_OPTIONS if tls else OPTIONS
    if kind is Kind.SENTINEL:
        known |= SENTINEL_OPTIONS
    options: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            # it may be a part of a password, which is in the query or begins before it
            is_name = name in TLS_OPTIONS | SENTINEL_OPTIONS or (
                re.fullmatch('[a-z_]{1,40}', name) and not re.search('@|pass', query)
            )
            raise _WrongUrl(
                f'it has an unknown option{f" {name}" if is_name else ""}; known are '
                f'{", ".join(sorted(known))}; {QUOTE}'
            )
        if name == 'sentinel_ssl':
            options[name] = value.lower() in ('true', 'yes', '1')
            continue
        try:
            if not value:
                raise ValueError
            found = parse_url(f'redis://?{urlencode({name: value})}')  # type: ignore[no-untyped-call]
        except ValueError:
            found = None
        if found is None:
            raise _WrongUrl(f'its option {name} has a wrong value')
        options |= found
    return options
