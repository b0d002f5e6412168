"""Finds the relations that the database changes by itself after a statement.

A foreign key with ON DELETE or ON UPDATE makes the database delete or update rows of tables that
the statement does not name, and views and parents show the rows of other tables. This module
knows definitions, and not where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable

from .catalog import Definition
from .notes import ANY_COLUMN, Relation


def affected(
    definitions: dict[Relation, Definition],
    writes: Iterable[Relation],
    deletes: Iterable[Relation],
    updates: Iterable[tuple[Relation, str]],
) -> set[Relation] | None:
    """Return the relations that the database changes by itself after a statement.

    These are the tables that its foreign keys delete from or update, and the relations that
    show the rows of any changed table. A table that the statement changes is among them if the
    database may change further rows of it, as by a foreign key that refers to its own table.

    :param definitions: the known definitions.
    :param writes: the relations that the statement changes; the others are parts of them.
    :param updates: relations with the column that is updated.
    :return: None if the definitions do not tell.
    """
    seen: set[tuple[Relation, str | None]] = set()
    if any(_acts(definitions, relation) for relation in writes):
        return None
    ahead: set[tuple[Relation, str | None]] = {(relation, None) for relation in deletes}
    ahead.update(updates)
    changed: set[Relation] = set()
    while ahead:
        relation, column = change = ahead.pop()
        seen.add(change)
        if _acts(definitions, relation):
            return None
        for reference in definitions[relation].references:
            action = reference.on_delete
            if column is not None:
                hit = column == ANY_COLUMN or column in reference.referred
                action = reference.on_update if hit else ''
            if action not in ('c', 'n', 'd'):
                continue
            changed.add(reference.relation)
            # a cascade of an update updates; one of a deletion deletes
            if action == 'c' and column is None:
                ahead |= {(reference.relation, None)} - seen
            else:
                ahead |= {(reference.relation, each) for each in reference.columns} - seen
    return changed.union(*(definitions[each].shown_by for each in {*changed, *writes}))


def _acts(definitions: dict[Relation, Definition], relation: Relation) -> bool:
    """Return whether a change of the relation may change more than its definition tells."""
    definition = definitions.get(relation)
    return definition is None or bool(definition.is_more or definition.acts)
