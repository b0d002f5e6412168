"""Tells which database a transaction works in, and which state of it: the identity.

What is known of a tenant's data holds for one identity only. A tenant gets another one when its
database was replaced, was restored, or may have lost commits that it had acknowledged, and when
its schema was dropped and made again, or another schema was renamed to its name.

On PostgreSQL the transaction's first statement returns the identity, because a connection
pooler may give each transaction another server. Every role may ask for all parts:

- when the server was started: another server, a promoted replica, a restored base backup and
  a server after a crash each have another start;
- when its statistics were last reset: the server resets them when it recovers from the crash of
  one of its processes, without another start. Commits with ``synchronous_commit`` off may be
  lost then;
- the folder of the database, which has its id, with a file of the catalog: to look the id up
  would cost a scan. VACUUM FULL of the catalog makes another file, which is harmless;
- the id of the schema, and of the transaction that last changed its entry in the catalog: a schema
  that was dropped and made again has another id, one that was renamed another transaction. So has
  one whose owner or rights were changed, which is harmless, too.

System identifier and timeline would add nothing, because they never change without another
start, and a role may lack the right to ask for them.

On SQLite it is the file that the connection has opened: device and inode.

This module does not know what follows from another identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

#: The parts of the identity that all schemas of a PostgreSQL database share, as columns.
SERVER = """
(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,
(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint,
pg_relation_filepath('pg_catalog.pg_class'::regclass)
"""

#: One schema's identity, as a column. The schema's part is '-' if there is no such schema. The
#: catalog is scanned once, because each scan costs a transaction some 25 us.
IDENTITY = f"""
coalesce(
    (SELECT concat_ws('.', {SERVER}, oid, xmin) FROM pg_namespace WHERE nspname = :schema_{{n}}),
    concat_ws('.', {SERVER}, '-', '-')
)
"""


def identity_columns(places: int) -> str:
    """Return columns of a SELECT, separated by commas: the identities of that many schemas."""
    return ', '.join(IDENTITY.format(n=n) for n in range(places))


def identity_query() -> str:
    """Return the query for one schema's identity, in the style of the driver: the parameter is
    ``%(schema_0)s``."""
    return 'SELECT ' + IDENTITY.format(n=0).replace(':schema_0', '%(schema_0)s')


def identity_parameters(places: Iterable[str]) -> dict[str, str]:
    """Return the parameters of :func:`identity_columns` for these schemas."""
    return {f'schema_{n}': place for n, place in enumerate(places)}


def is_missing(identity: str) -> bool:
    """Return whether an identity is that of a schema which the database does not have."""
    return identity.endswith('.-.-')


def file_identity(path: str) -> str:
    """Return the identity of a file: its device and inode.

    :raises OSError: if there is no such file.
    """
    status = os.stat(path)
    return f'{status.st_dev}.{status.st_ino}'
