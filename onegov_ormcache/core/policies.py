"""Policies: which changes evict a property.

This module turns policies into tags, and asks policies that are functions about changed
objects. It does not know the tag store or transactions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from sqlalchemy import Column, FromClause, Table, inspect
from sqlalchemy.orm import InstrumentedAttribute, Mapper

from ..database.signals import mapped_tables
from ..errors import PolicyError
from ..tags.snapshot import TABLE_TAG
from .objects import ObjectState, UnknownState
from .rows import RowPolicy, Rows, resolve_rows

log = logging.getLogger(__name__)

#: ``'on-table-change:users,groups'``, ``'auto'``, a mapped class, a ``Table``, ``rows(...)``, a
#: function of the changed object, or a list of these. ``User.__table__`` is declared as a
#: ``FromClause``.
CachePolicy: TypeAlias = (
    'str | type[Any] | FromClause | Rows | Callable[[Any], bool] | Sequence[CachePolicy]'
)

TABLES = 'on-table-change:'
AUTO: Literal['auto'] = 'auto'

ChangeKind: TypeAlias = Literal['insert', 'update', 'delete']


@dataclass(frozen=True)
class Policy:
    """A policy that has been checked: the tables and rows that it names, and its functions.

    Made when the application is committed, and when a property is bound.
    """

    tables: frozenset[str]
    functions: tuple[Callable[[Any], bool], ...]
    auto: bool
    #: The policies for rows, each with the creator's parameters whose values it takes.
    rows: tuple[tuple[RowPolicy, tuple[str, ...]], ...] = ()

    @property
    def tags(self) -> frozenset[str]:
        """The tags of the tables.

        The tags that ``'auto'`` learns, that of the functions, and those of rows are not among
        them.
        """
        return table_tags(self.tables)


def table_tags(tables: Collection[str]) -> frozenset[str]:
    """Return the tags of the tables with these names."""
    return _tags_of(frozenset(tables))


@lru_cache(10_000)
def _tags_of(tables: frozenset[str]) -> frozenset[str]:
    return frozenset(TABLE_TAG + table for table in tables)


def check_policy(policy: CachePolicy, where: str, parameters: Sequence[str] = ()) -> None:
    """Raise :class:`PolicyError` if the policy is of no known kind, or names arguments that the
    creator does not take.

    :param where: the property, with its file and line, for the message.
    :param parameters: those of the creator, beside the instance.
    """
    for part in policy_parts(policy):
        if isinstance(part, Rows):
            _arguments_of(part, where, parameters)
            continue
        if isinstance(part, str):
            if part != AUTO and not (part.startswith(TABLES) and all(_names(part))):
                raise PolicyError(
                    f'{where}: unknown policy {part!r}; use {TABLES}TABLE[,TABLE...], '
                    'auto, a mapped class, a Table, rows(...), a function of the changed object, '
                    'or a list of these'
                )
        elif isinstance(part, type):
            if not isinstance(inspect(part, raiseerr=False), Mapper):
                raise PolicyError(f'{where}: the policy {part!r} is no mapped class')
        elif isinstance(part, (InstrumentedAttribute, Column)):
            raise PolicyError(
                f'{where}: the policy {part} is a column or attribute; if the creator takes an '
                f'argument that it equals, write rows({part}); else a change of any row evicts, '
                f'so name what it belongs to: policy={_owner(part)}'
            )
        elif not (callable(part) or isinstance(part, Table)):
            raise PolicyError(f'{where}: {part!r} can not be a policy')


def resolve_policy(
    policy: CachePolicy, known: Collection[str], where: str, parameters: Sequence[str] = ()
) -> Policy:
    """Turn a policy into tables, rows and functions.

    :param known: the names of the application's tables.
    :param where: the property, with its file and line, for the message.
    :param parameters: those of the creator, beside the instance.
    :raises PolicyError: if the policy is of no known kind, or names a table that the
        application does not have.
    """
    check_policy(policy, where, parameters)
    tables: set[str] = set()
    functions: list[Callable[[Any], bool]] = []
    found: dict[tuple[RowPolicy, tuple[str, ...]], None] = {}
    auto = False
    for part in policy_parts(policy):
        if isinstance(part, Rows):
            found[resolve_rows(part, where), _arguments_of(part, where, parameters)] = None
        elif part == AUTO:
            auto = True
        elif isinstance(part, str):
            tables.update(_names(part))
        elif isinstance(part, (type, Table)):
            tables.update(tables_meant(part))
        else:
            functions.append(part)
    for table in sorted(tables.union(*(each.tables for each, _ in found))):
        if table not in known:
            raise PolicyError(
                f'{where}: the policy names the table {table!r}, which the application does '
                f'not have; it has {", ".join(sorted(known)) or "none"}'
            )
    return Policy(frozenset(tables), tuple(functions), auto, tuple(found))


def tables_named(policy: CachePolicy, where: str) -> frozenset[str]:
    """Return the names of the tables that a policy names, also those of its rows.

    ``'auto'`` and functions name none. The policy has been checked.
    """
    named: set[str] = set()
    for part in policy_parts(policy):
        if isinstance(part, Rows):
            named.update(resolve_rows(part, where).tables)
        elif isinstance(part, (type, Table)):
            named.update(tables_meant(part))
        elif isinstance(part, str) and part != AUTO:
            named.update(_names(part))
    return frozenset(named)


def tables_meant(what: str | type | Table) -> Collection[str]:
    """Return the names of the tables that a name, mapped class or ``Table`` stands for.

    A mapped class stands for all tables that it is mapped to.
    """
    if isinstance(what, str):
        return (what,)
    if isinstance(what, Table):
        return (what.fullname,)
    return frozenset(mapped_tables(what))


def as_written(policy: CachePolicy) -> str:
    """Return a policy as a short text, for messages."""
    if isinstance(policy, (list, tuple)):
        return '[' + ', '.join(map(as_written, policy)) + ']'
    return f'Table {policy}' if isinstance(policy, Table) else repr(policy)


def depends_on_shared(
    reached_from: Callable[[str], Collection[str]], tables: Collection[str]
) -> dict[str | None, frozenset[str]]:
    """Return the tags of shared tables that a value depends on beside its own tags.

    :param reached_from: returns the tables that change with a table, by cascades.
    :param tables: the names of the shared tables.
    :return: for the tag of each table that a change of shared tables reaches, also by
        cascades, the tags of these shared tables; for None, the tags of all shared tables.
    """
    beside: dict[str | None, frozenset[str]] = {}
    for table in tables:
        for name in (*reached_from(table), None):
            tag = None if name is None else TABLE_TAG + name
            beside[tag] = beside.get(tag, frozenset()) | {TABLE_TAG + table}
    return beside


def concerns(
    functions: Collection[Callable[[Any], bool]], obj: object, change: ChangeKind, name: str
) -> bool:
    """Return whether a changed object concerns a function policy.

    It does if one of the functions returns a true value for the object as it was before the
    flush (except for an insert) or as it is after it (except for a delete). It also does if a
    function needs a value that only a query would tell, or raises an error, which is logged.

    :param functions: the functions of the policy.
    :param name: the property's name, for the log.
    """
    states = []
    if change != 'insert':
        states.append(ObjectState(obj, before=True))
    if change != 'delete':
        states.append(ObjectState(obj, before=False))
    for function in functions:
        try:
            if any(function(state) for state in states):
                return True
        except UnknownState:
            return True
        except Exception:
            log.exception('The policy of %s failed; the property is evicted', name)
            return True
    return False


def policy_parts(policy: CachePolicy) -> Iterator[Any]:
    """Yield the parts of a policy that is a list, nested or not; else the policy itself."""
    if isinstance(policy, (list, tuple)):
        for part in policy:
            yield from policy_parts(part)
    else:
        yield policy


def _arguments_of(part: Rows, where: str, parameters: Sequence[str]) -> tuple[str, ...]:
    """Return the creator's parameters whose values a policy for rows takes.

    :raises PolicyError: if the creator does not have them.
    """
    arguments = part.arguments or tuple(parameters[: len(part.columns)])
    if len(arguments) < len(part.columns) or not set(arguments) <= set(parameters):
        raise PolicyError(
            f'{where}: the policy {part!r} needs an argument of the creator for each column, and '
            f'the creator takes {", ".join(parameters) or "none"} beside the instance'
        )
    return arguments


def _owner(part: InstrumentedAttribute[Any] | Column[Any]) -> str:
    """Return what to write as a policy instead of a column or attribute."""
    if isinstance(part, InstrumentedAttribute):
        return part.class_.__qualname__
    table: Any = part.table
    return repr(f'{TABLES}{getattr(table, "fullname", "TABLE")}')


def _names(part: str) -> list[str]:
    return [name.strip() for name in part.removeprefix(TABLES).split(',')]
