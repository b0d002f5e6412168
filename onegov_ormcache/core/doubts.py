"""The doubts of one transaction: sent before its COMMIT, answered, and ended after it.

A doubt may be sent while the rest of a flush goes on. It is never sent before the transaction has
changed anything: only then does a quarantine wait for it, if the tag store forgets the doubt. It
is answered before COMMIT is sent. What became known after it was sent is put in doubt by a second
one. This module does not know which tags these are, nor when a transaction ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import SnapshotConflict, StoreUnreachable
from ..steps import Step, about_to
from ..tags.snapshot import DoubtAnswer, Stamp, TagStore, new_token


class OwnDoubt(NamedTuple):
    """What a transaction puts in doubt in its own schema; see :meth:`.TagStore.doubt`."""

    tags: frozenset[str]
    known: frozenset[str]
    read: Stamp
    computed: Stamp
    #: The number of statements that have changed a table which was not locked before, and of
    #: those for objects that were loaded. Each may have met other definitions, or rows in other
    #: places, than the one before.
    statements: int


class Doubts:
    """The doubts of one transaction; made by its write path.

    :param store: where they are put.
    :param schema: the transaction's own schema.
    """

    def __init__(self, store: TagStore, schema: str) -> None:
        self._store = store
        self._schema = schema
        self._writer = new_token()
        self._sent: OwnDoubt | None = None
        self._answer: DoubtAnswer | None = None
        #: The tags of the own schema that are in doubt; None until the answer has said so.
        self.tags: frozenset[str] | None = None
        # by schema, the tags of other tenants
        self._elsewhere: dict[str, frozenset[str]] = {}

    @property
    def are_sent(self) -> bool:
        """True if tags may be in doubt."""
        return self._sent is not None

    def send(self, own: OwnDoubt, key: str) -> None:
        """Send the doubt, unless the same was sent, and do not wait for the answer.

        :param key: by which the database is asked whether the transaction has ended.
        :raises StoreUnreachable: if it can't be sent.
        """
        if own == self._sent and self._answer is not None:
            return
        about_to(Step.DOUBT)
        self.leave()
        self._sent = own
        with self._reachable():
            self._answer = self._store.doubt(
                self._schema, self._writer, own.tags, own.known, key, own.read, own.computed
            )

    def put(self, own: OwnDoubt, key: str) -> None:
        """Send the doubt, unless the same was sent, and wait for the answer.

        :raises SnapshotConflict: if a version that the transaction has read does not hold.
        :raises StoreUnreachable: if the store can't be reached.
        """
        self.send(own, key)
        about_to(Step.ANSWER)
        answer, self._answer = self._answer, None
        assert answer is not None
        with self._reachable():
            self.tags = answer.result()

    def put_elsewhere(self, place: str, tags: Collection[str], key: str) -> None:
        """Put tags of another tenant in doubt, and wait for the answer.

        :raises StoreUnreachable: if the store can't be reached.
        """
        self._elsewhere[place] = frozenset(tags)
        # another tenant's function policies can't be asked about these changes
        writer = self._writer_at(place)
        self._store.doubt(place, writer, tags, (), key, {}).result()

    def publish(self) -> None:
        """Give the tags in doubt new versions, and end all doubts: the transaction has committed.

        :raises StoreUnreachable: if the store can't be reached; the doubts stay.
        """
        self._store.publish(self._schema, self._writer, self.tags or ())
        for place, tags in self._elsewhere.items():
            self._store.publish(place, self._writer_at(place), tags)

    def end(self) -> None:
        """End all doubts: the transaction has not committed.

        :raises StoreUnreachable: if the store can't be reached; the doubts stay.
        """
        answer, self._answer = self._answer, None
        if answer is not None:
            # an end that is faster than the doubt would leave that
            try:
                answer.result()
            except (SnapshotConflict, StoreUnreachable):
                pass
        self._store.end_doubt(self._schema, self._writer)
        for place in self._elsewhere:
            self._store.end_doubt(place, self._writer_at(place))

    def leave(self) -> None:
        """Do not wait for an answer that has not come."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.leave()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Take a doubt that may not have been put for one that was not.

        If it was, who meets it settles it; so a store that stalls is not waited for twice.
        """
        try:
            yield
        except StoreUnreachable:
            self._sent = None
            raise

    def _writer_at(self, place: str) -> str:
        """Return the writer's id for the doubt at another place than its own schema."""
        return f'{self._writer}@{place}'
