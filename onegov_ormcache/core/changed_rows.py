"""The rows that one transaction has changed, as tags.

A statement tells the rows by the values that it was given, an object by its own. Where neither is
certain, all rows count as changed. This module does not know how tags evict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from ..database.protocols import RowTexts, Statement
from ..tags.snapshot import Stamp
from .protocols import WritingScope
from .rows import MAX_BUCKETS, RowPolicy

#: The default of what triggers tell.
NOTHING_TOLD: Mapping[str, RowTexts] = MappingProxyType({})


class ChangedRows:
    """The rows that one transaction has changed so far; made by its write path.

    :param scope: the scope of the transaction.
    """

    def __init__(self, scope: WritingScope) -> None:
        self._scope = scope
        # by policy, the changed buckets; None: all rows
        self._buckets: dict[RowPolicy, set[int] | None] = {}
        # by policy, the versions of the rows of which objects were loaded
        self._loaded: dict[RowPolicy, dict[str, str]] = {}
        #: The number of changes for which the versions of :attr:`loaded` must hold. An answer
        #: that they did is of no use for a later change: its row may have moved meanwhile.
        self.number_loaded = 0

    @property
    def loaded(self) -> Stamp:
        """The versions that must hold when the tags are put in doubt, because objects were loaded
        with them."""
        return {tag: version for held in self._loaded.values() for tag, version in held.items()}

    def has_all(self, policy: RowPolicy) -> bool:
        """Return whether all rows of a policy count as changed."""
        return self._buckets.get(policy, ()) is None

    def of_statement(self, statement: Statement) -> frozenset[str]:
        """Return the tags of the rows that a statement changes: of those that it tells, or of all.

        No object stands for the change.
        """
        policies = self._scope.cache.registry.rows
        tags: set[str] = set()
        for table in statement.writes if policies else ():
            # what the database changes by itself may be other rows of the same table
            is_hidden = table in statement.cascades
            selections = None if is_hidden else statement.rows.get(table)
            for policy in policies.of_table(table):
                has_all = self.has_all(policy)
                buckets = None if has_all else policy.buckets_selected(table, selections)
                tags |= self.add(policy, buckets)
        return self.of_tables(statement.cascades - statement.writes) | tags

    def of_tables(
        self, tables: Iterable[str], told: Mapping[str, RowTexts] = NOTHING_TOLD
    ) -> frozenset[str]:
        """Return the tags of all rows of these tables.

        :param told: by table, what triggers tell of its changed rows, if they tell of all.
        """
        policies = self._scope.cache.registry.rows.told(tables, told)
        return frozenset().union(*(self.add(policy, buckets) for policy, buckets in policies))

    def of_object(
        self,
        policy: RowPolicy,
        buckets: Collection[int] | None,
        loaded: Collection[int],
        number: int,
    ) -> frozenset[str]:
        """Return the tags of the rows that a flush has written for an object.

        :param buckets: those of the row before and after; None: not known.
        :param loaded: those that are only known from the object, as it was loaded in this
            transaction. Another transaction may have moved the row to another bucket since. Then
            it has changed the version of this one: see :attr:`loaded`.
        :param number: that of the snapshot with which the transaction began.
        """
        if self.has_all(policy):
            return self.add(policy, None)
        scope = self._scope
        if loaded:
            snapshot = scope.snapshot()
            is_own = number == scope.snapshot_number and snapshot.usable
            if is_own and scope.is_in_one_transaction:
                self.number_loaded += 1
                held = self._loaded.setdefault(policy, {})
                for tag in (policy.tag, *map(policy.bucket_tag, loaded)):
                    if tag not in held:
                        held[tag] = snapshot.version(tag)
            else:
                buckets = None
        return self.add(policy, buckets)

    def add(self, policy: RowPolicy, buckets: Collection[int] | None) -> frozenset[str]:
        """Add changed buckets of a policy; return the tags that have changed.

        :param buckets: None: all rows, as they are if there are too many.
        :return: also those that have changed before: values may have been computed since.
        """
        known = self._buckets.setdefault(policy, set())
        if known is None:
            return frozenset((policy.tag,))
        if buckets is not None:
            known.update(buckets)
        if buckets is not None and len(known) <= MAX_BUCKETS:
            return frozenset(map(policy.bucket_tag, buckets))
        self._buckets[policy] = None
        self._loaded.pop(policy, None)
        return frozenset((policy.tag,))

    def moved(self, tag: str | None) -> frozenset[str]:
        """Return the tags of all rows that a tag belongs to, whose version does not hold.

        :return: none, if no object was loaded with it.
        """
        policies = [policy for policy, held in self._loaded.items() if tag in held]
        return frozenset().union(*(self.add(policy, None) for policy in policies))
