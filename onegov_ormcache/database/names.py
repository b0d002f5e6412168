"""Names that the package gives to what others see: execution options, settings, triggers.

All begin alike, so that whoever meets one in a database or on a connection knows whose it
is. ``sql/notify.sql`` has those of the trigger function once more.
"""

#: Execution option: the scope whose transactions a connection or engine runs.
SCOPE_OPTION = 'orm_cache_scope'

#: Execution option of the package's own statements and connections.
INTERNAL_OPTION = 'orm_cache_internal'

#: The execution options of the package's own statements and connections.
INTERNAL = {INTERNAL_OPTION: True}

#: The function that triggers call, in the tenant's schema; see ``triggers.py``.
NOTIFY_FUNCTION = 'orm_cache_notify'

#: The channel of a database on which triggers notify: ``SCHEMA:TABLE``; without a
#: table if everything may have changed.
CHANNEL = 'orm_cache'

#: Setting of PostgreSQL: the schemas that this transaction asks about itself.
OWN_SETTING = 'orm_cache.own'

#: Setting of PostgreSQL: what triggers have seen in this transaction.
CHANGED_SETTING = 'orm_cache.changed'

#: The savepoint around a question about a transaction.
ORACLE_SAVEPOINT = 'orm_cache_oracle'

#: Quotes the body of the trigger function.
BODY_QUOTE = '$orm_cache$'

#: The advisory lock of the one process that may keep what it knows of a database in memory.
CLAIM_LOCK = int.from_bytes(b'ormcache')
