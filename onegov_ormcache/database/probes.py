"""The texts of the questions about one transaction of PostgreSQL; :mod:`.inquiries` asks them.

There are two sets of them, because a transaction of the package has the search path that the
package has given it, and a transaction of a host has the host's. This module does not know what is
done with the answers.
"""

from __future__ import annotations

from typing import NamedTuple, Self

from sqlalchemy import TextClause, text

from .locks import LOCKS
from .names import CHANGED_SETTING, MARKER_SETTING, OWN_SETTING, ROWS_SETTING

#: What changes how a text is read, apart from tables and search path: as one text.
SURROUNDINGS = (
    "current_setting('TimeZone') || '|' || current_setting('DateStyle') || '|' || "
    "current_setting('IntervalStyle') || '|' || current_setting('row_security') || '|' || "
    'current_user'
)

#: The search path, word for word.
PATH = "current_setting('search_path')"

#: The schema in which an unqualified name is looked up first; '' if there is none. A temporary
#: table on the connection would come before it, so the name is that of the temporary schema then.
FIRST_SCHEMA = """
CASE WHEN pg_my_temp_schema() <> 0
    AND EXISTS (SELECT FROM pg_class WHERE relnamespace = pg_my_temp_schema())
THEN 'pg_temp' ELSE coalesce((current_schemas(false))[1]::text, '') END
"""

#: PostgreSQL's own tables whose changes take no lock on anything else, with the kinds of changes
#: that count. Inserts into ``pg_type`` and ``pg_namespace`` do not: each temporary table makes a
#: type, and a connection's first one a schema.
CODE = {
    'pg_proc': ('inserted', 'updated', 'deleted'),
    'pg_enum': ('inserted', 'updated', 'deleted'),
    'pg_policy': ('inserted', 'updated', 'deleted'),
    'pg_operator': ('inserted', 'updated', 'deleted'),
    'pg_cast': ('inserted', 'updated', 'deleted'),
    'pg_type': ('updated',),
    'pg_namespace': ('updated', 'deleted'),
}

CHANGED_CODE = ' + '.join(
    f"pg_stat_get_xact_tuples_{kind}('{table}'::regclass)"
    for table, kinds in CODE.items()
    for kind in kinds
)

#: Selects the schemas in which this transaction has made or replaced functions and the like. It
#: may also select those that others have changed since this one began, and does not find what
#: was dropped.
CODE_SCHEMAS = """
WITH given AS (SELECT age(pg_current_xact_id()::xid) AS age), changed(id) AS (
    SELECT pronamespace FROM pg_proc t, given WHERE age(t.xmin) <= given.age
    UNION SELECT typnamespace FROM pg_type t, given WHERE age(t.xmin) <= given.age
    UNION SELECT typnamespace FROM pg_type JOIN pg_enum t ON enumtypid = pg_type.oid, given
        WHERE age(t.xmin) <= given.age
    UNION SELECT oprnamespace FROM pg_operator t, given WHERE age(t.xmin) <= given.age
    UNION SELECT relnamespace FROM pg_class JOIN pg_policy t ON polrelid = pg_class.oid, given
        WHERE age(t.xmin) <= given.age
)
SELECT nspname FROM pg_namespace WHERE oid IN (SELECT id FROM changed) AND nspname !~ '^pg_'
"""

#: Returns the transaction's id and whether it is still the one that began; if it has written
#: anything, also its locks and whether it has changed functions and the like.
QUESTION = f"""
SELECT pg_current_xact_id_if_assigned()::text, current_setting('{MARKER_SETTING}', true),
    ({{path}}) || '|' || {SURROUNDINGS}, current_setting('{CHANGED_SETTING}', true),
    CASE WHEN pg_current_xact_id_if_assigned() IS NOT NULL THEN ({LOCKS}) END,
    CASE WHEN pg_current_xact_id_if_assigned() IS NOT NULL
        THEN {CHANGED_CODE} + (current_setting('track_counts') = 'off')::int ELSE 0 END,
    pg_stat_get_xact_tuples_updated('pg_namespace'::regclass),
    current_setting('{ROWS_SETTING}', true)
"""

#: The part of it that tells whether there is more to ask.
GLANCE = f"""
SELECT pg_current_xact_id_if_assigned(), current_setting('{MARKER_SETTING}', true),
    ({{path}}) || '|' || {SURROUNDINGS}
"""

#: The last question of a transaction whose statements were all understood.
END = f"""
SELECT pg_current_xact_id_if_assigned()::text, current_setting('{MARKER_SETTING}', true),
    NULL, current_setting('{CHANGED_SETTING}', true), NULL, 0, 0, NULL,
    set_config('{OWN_SETTING}', '', true)
"""

#: The number of accesses to each of these relations, in the order of the oids; then the number of
#: changed rows in all of them.
COUNTERS = """
(SELECT array_agg(
    pg_stat_get_xact_numscans(oid) + pg_stat_get_xact_tuples_returned(oid)
    + pg_stat_get_xact_tuples_fetched(oid) ORDER BY n
) FROM unnest(CAST(:oids AS oid[])) WITH ORDINALITY AS given(oid, n)),
(SELECT sum(
    pg_stat_get_xact_tuples_inserted(oid) + pg_stat_get_xact_tuples_updated(oid)
    + pg_stat_get_xact_tuples_deleted(oid)
)::bigint FROM unnest(CAST(:oids AS oid[])) AS given(oid))
"""

#: Makes workers of parallel queries impossible, whose accesses the counters do not show, and
#: returns the counters and locks.
WATCH_READS = text(f"""
SELECT ({LOCKS}), {COUNTERS}, current_setting('track_counts') = 'on',
    set_config('max_parallel_workers_per_gather', '0', true)
""")

READS = f"""
SELECT ({LOCKS}), {COUNTERS}, current_setting('{MARKER_SETTING}', true),
    ({{path}}) || '|' || {SURROUNDINGS}, pg_current_xact_id_if_assigned()::text
"""


class Probes(NamedTuple):
    """The questions about transactions of one kind, in SQL."""

    #: The search path, as an expression.
    path: str
    #: Whether there is anything to ask.
    glance: str
    #: What the transaction has changed.
    question: str
    #: The same, directly before COMMIT. It also empties :data:`~.names.OWN_SETTING`, so that
    #: triggers send notifications from here on: changes made while COMMIT runs (by deferred
    #: constraint triggers) are not in this answer.
    last_question: str
    #: What it has read.
    reads: TextClause

    @classmethod
    def make(cls, path: str) -> Self:
        """Return the questions with this expression for the search path."""
        question = QUESTION.format(path=path)
        return cls(
            path,
            GLANCE.format(path=path),
            question,
            f"{question}, set_config('{OWN_SETTING}', '', true)",
            text(READS.format(path=path)),
        )


#: For transactions whose search path the package sets.
OF_PACKAGE = Probes.make(PATH)

#: For transactions whose search path a host sets.
OF_HOST = Probes.make(FIRST_SCHEMA)
