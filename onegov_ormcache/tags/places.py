"""Keeps the versions of shared tables' tags with the schema of those tables: the tags' place.

A tag's place is the schema whose versions it belongs to: the tenant, or the schema of a shared
table. A tenant's snapshot is merged from its own and that of each shared schema. If any tenant
changes a shared table, the tag is put in doubt and published at the table's place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import starmap

from cachetools import LRUCache

from ..errors import OrmCacheError
from ..forks import OwnLock
from .overlays import with_changes
from .snapshot import CATALOG_TAG, NO_VERSIONS, TABLE_TAG, DoubtAnswer, Snapshot, Stamp, TagStore


class PlacedDoubt:
    """A doubt at several places, and the answers to it; see :class:`.DoubtAnswer`.

    :param first: send the doubts of single places; all are called before any answer is waited for.
    :param then: the same; called when the first ones are answered.
    :param end: ends all doubts.
    """

    def __init__(
        self,
        first: Sequence[Callable[[], DoubtAnswer]],
        then: Sequence[Callable[[], DoubtAnswer]],
        end: Callable[[], None],
    ) -> None:
        self._then = then
        self._end = end
        self._waiting: list[DoubtAnswer] = []
        self._send(first)

    def result(self) -> frozenset[str]:
        doubted = self._answers()
        self._send(self._then)
        return frozenset(doubted | self._answers())

    def leave(self) -> None:
        while self._waiting:
            self._waiting.pop().leave()

    def _send(self, doubts: Sequence[Callable[[], DoubtAnswer]]) -> None:
        with self._ending_on_error():
            for send in doubts:
                self._waiting.append(send())

    def _answers(self) -> set[str]:
        doubted: set[str] = set()
        with self._ending_on_error():
            while self._waiting:
                doubted |= self._waiting.pop(0).result()
        return doubted

    @contextmanager
    def _ending_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.leave()
            if isinstance(error, OrmCacheError):
                self._end()
            raise


class PlacedTagStore:
    """A tag store over another one, for applications whose tenants share tables.

    Made by a cache, lives as long. See :class:`~onegov_ormcache.tags.snapshot.TagStore`. A
    call takes a round trip for each place that it concerns; a doubt takes a second one for
    each place of a tag in ``read`` or ``computed``.

    :param store: keeps the versions of each place as it would those of a tenant.
    :param tables: the names of the shared tables, each with its schema.
    """

    def __init__(self, store: TagStore, tables: Iterable[str]) -> None:
        self.store = store
        self.single_process = store.single_process
        self._place_of = {TABLE_TAG + table: table.rpartition('.')[0] for table in tables}
        #: The schemas of the shared tables.
        self.shared_schemas = sorted(set(self._place_of.values()))
        # the places of each writer's doubt; bounded, because an entry stays if the outcome of
        # the writer's transaction is never known
        self._doubted: LRUCache[str, list[str]] = LRUCache(10_000)
        self._lock = OwnLock()
        # by tenant, the snapshot that was merged last
        self._merged: LRUCache[str, Snapshot] = LRUCache(10_000)

    @property
    def changes(self) -> int:
        return self.store.changes

    @property
    def is_lost(self) -> bool:
        return self.store.is_lost

    def missed(self) -> None:
        self.store.missed()

    def check(self, *, insists: bool = False) -> None:
        self.store.check(insists=insists)

    def inspect(self) -> None:
        self.store.inspect()

    def identity(self, schema: str) -> str | None:
        return self.store.identity(schema)

    def unidentified(self, schema: str) -> Snapshot:
        places = (schema, *self.shared_schemas)
        return self._merge(tuple((place, self.store.unidentified(place)) for place in places))

    def identify(self, schema: str, identity: str, identities: str) -> None:
        self.store.identify(schema, identity, identities)

    def follow(self, schema: str, identity: str, identities: str) -> None:
        self.store.follow(schema, identity, identities)

    def assume(self, schema: str, identity: str) -> None:
        self.store.assume(schema, identity)

    def snapshot(self, schema: str) -> Snapshot:
        parts = tuple((part, self.store.snapshot(part)) for part in (schema, *self.shared_schemas))
        with self._lock.present:
            merged = self._merged.get(schema)
            if merged is None or any(
                new is not old for (_, new), (_, old) in zip(parts, merged.parts, strict=True)
            ):
                merged = self._merged[schema] = self._merge(parts)
        return merged

    def doubt(
        self,
        schema: str,
        writer: str,
        tags: Collection[str],
        known: Collection[str],
        transaction_key: str,
        read: Stamp,
        computed: Stamp = NO_VERSIONS,
    ) -> PlacedDoubt:
        changed = self.by_place(schema, tags)
        stamps, computed_stamps = self._stamps(schema, read), self._stamps(schema, computed)
        checked = sorted(stamps.keys() | computed_stamps.keys())
        places = sorted(changed.keys() | set(checked))
        # if two writers have each read what the other changes, at different places, one of them
        # must find the other's doubt: so versions that were read are checked after all doubts are
        # in place. Versions of one place alone are checked together with the last doubt.
        is_ordered = bool(computed) or not read.keys() <= {CATALOG_TAG}
        last = checked[0] if is_ordered and len(checked) == 1 else None
        with self._lock.present:
            self._doubted[writer] = places

        def send(place: str, is_checking: bool) -> DoubtAnswer:
            return self.store.doubt(
                place, writer, changed.get(place, ()), known, transaction_key,
                stamps.get(place, NO_VERSIONS) if is_checking else NO_VERSIONS,
                computed_stamps.get(place, NO_VERSIONS) if is_checking else NO_VERSIONS,
            )  # fmt: skip

        def end() -> None:
            self.end_doubt(schema, writer)

        first = [partial(send, place, not is_ordered) for place in places if place != last]
        then = [partial(send, place, True) for place in checked if is_ordered]
        return PlacedDoubt(first, then, end) if first else PlacedDoubt(then, [], end)

    def publish(self, schema: str, writer: str, tags: Collection[str]) -> None:
        changed = self.by_place(schema, tags)
        for place in self._pop(writer, changed):
            self.store.publish(place, writer, changed.get(place, ()))

    def end_doubt(self, schema: str, writer: str) -> None:
        for place in self._pop(writer, (schema,)):
            self.store.end_doubt(place, writer)

    def settle(self, schema: str, writer: str, lease: float | None) -> None:
        self.store.settle(schema, writer, lease)

    def quarantine(self, schema: str, birth: str, waiting: Collection[str]) -> None:
        self.store.quarantine(schema, birth, waiting)

    def register(self, schema: str, tags: Collection[str]) -> None:
        self.store.register(schema, tags)

    def renew(self, schema: str) -> None:
        self.store.renew(schema)

    def forget(self, schema: str, interval: float) -> None:
        self.store.forget(schema, interval)

    def own_parts(self, schema: str, stamps: Sequence[Stamp]) -> list[Stamp | None]:
        """Return the parts of stamps that belong to the tenant itself.

        The tenant's part must be checked when the value is stored. The parts of other places
        are checked now, each place once for all stamps. If one of these changes before the value
        is stored, no harm is done: the stamp agrees with no later snapshot, so the value is never
        used.

        :return: for each stamp, None if the part of another place does not hold.
        """
        present: dict[str, Snapshot] = {}

        def holds(place: str, part: Stamp) -> bool:
            if place not in present:
                present[place] = self.store.snapshot(place)
            now = present[place]
            return (
                now.identified
                and now.quarantine is None
                and now.agrees(part)
                and now.in_doubt.isdisjoint(part)
            )

        own_parts: list[Stamp | None] = []
        for stamp in stamps:
            parts = self._stamps(schema, stamp)
            own = parts.pop(schema, {})
            own_parts.append(own if all(starmap(holds, parts.items())) else None)
        return own_parts

    def _merge(self, parts: tuple[tuple[str, Snapshot], ...]) -> Snapshot:
        (_, own), *_ = parts
        by_place = dict(parts)
        shared = {tag: by_place[place].version(tag) for tag, place in self._place_of.items()}
        quarantines = [part.quarantine for _, part in parts if part.quarantine is not None]
        doubts = {writer: doubt for _, part in parts for writer, doubt in part.doubts.items()}
        return Snapshot(
            birth=own.birth,
            epoch=own.epoch,
            versions=with_changes(own.versions, shared),
            doubts=doubts,
            quarantine=quarantines[0] if quarantines else None,
            in_doubt=frozenset().union(*(part.in_doubt for _, part in parts)),
            parts=parts,
            identity=own.identity,
            identities=own.identities,
            identified=all(part.identified for _, part in parts),
            property_tags=own.property_tags,
        )

    def by_place(self, schema: str, tags: Iterable[str]) -> dict[str, list[str]]:
        """Return a tenant's tags by their places."""
        places: dict[str, list[str]] = {}
        for tag in tags:
            places.setdefault(self._place_of.get(tag, schema), []).append(tag)
        return places

    def _stamps(self, schema: str, stamp: Stamp) -> dict[str, dict[str, str]]:
        places = self.by_place(schema, stamp)
        return {place: {tag: stamp[tag] for tag in tags} for place, tags in places.items()}

    def _pop(self, writer: str, otherwise: Iterable[str]) -> list[str]:
        """Forget the places of a writer's doubt and return them; ``otherwise`` if unknown."""
        with self._lock.present:
            return self._doubted.pop(writer, None) or list(otherwise)
