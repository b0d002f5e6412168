"""Names of the package that others can see: execution options, settings, triggers and so on.

All begin alike, so that anybody who finds one in a database or on a connection knows that it
belongs to the package. ``sql/notify.sql`` repeats the names that the trigger function uses.
"""

#: Execution option of a connection or engine: the scope that its transactions belong to.
#: Also the key of a session's scope in ``Session.info``.
SCOPE_OPTION = 'orm_cache_scope'

#: Execution option that marks the package's own statements and connections: they need no
#: scope, and no listener is told of them.
INTERNAL_OPTION = 'orm_cache_internal'

#: The execution options of the package's own statements and connections.
INTERNAL = {INTERNAL_OPTION: True}

#: The function, in each tenant's schema, that the triggers call; see ``triggers.py``.
NOTIFY_FUNCTION = 'orm_cache_notify'

#: The channel on which the triggers send notifications. The payload is ``SCHEMA:TABLE``, or
#: ``SCHEMA:`` if every table of the schema may have changed.
CHANNEL = 'orm_cache'

#: The channel on which triggers that tell rows send which rows a transaction has changed, before
#: they name the table on :data:`CHANNEL`; see ``sql/notify.sql``.
ROWS_CHANNEL = 'orm_cache_rows'

#: Setting of PostgreSQL, local to a transaction: the schemas whose changes the transaction
#: itself asks for before COMMIT; see ``sql/notify.sql``.
OWN_SETTING = 'orm_cache.own'

#: Setting of PostgreSQL, local to a transaction: the tables that the triggers saw change in
#: it; see ``sql/notify.sql``.
CHANGED_SETTING = 'orm_cache.changed'

#: Setting of PostgreSQL, local to a transaction: the rows that the triggers saw change in it, by
#: values of columns; see ``sql/notify.sql``.
ROWS_SETTING = 'orm_cache.rows'

#: Setting of PostgreSQL, local to a transaction: a random text, by which the transaction is
#: known again.
MARKER_SETTING = 'orm_cache.marker'

#: The savepoint around a question of the package to the database.
ORACLE_SAVEPOINT = 'orm_cache_oracle'

#: The dollar quotes around the body of the trigger function.
BODY_QUOTE = '$orm_cache$'

#: Key of the advisory lock of the one process that may keep its knowledge of a database in
#: memory; see ``Postgres.claim()``.
CLAIM_LOCK = int.from_bytes(b'ormcache')

#: The table of a schema in which transactions leave messages; see ``outbox.py``.
OUTBOX = 'orm_cache_outbox'

#: The channel on which a transaction that leaves messages says so. The payload is their namespace.
OUTBOX_CHANNEL = 'orm_cache_outbox'

#: Stands for the tenant of connections that have none.
NOWHERE = ''


def quote(name: str) -> str:
    """Return a name as a quoted identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'
