"""Reads cached properties: in a unit of work, in those of another thread and another process."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from onegov_ormcache import OrmCache, orm_cached

from .entries import Read
from .programs import Program, Settings, make_program
from .reads import READS
from .schema import ONE, TWO
from .truth import Outcome, outcome

#: Attempts of a read that a conflict ends.
ATTEMPTS = 3

#: Reads that wait for a lock, after which a place does not go on: all others would wait, too.
PATIENCE = 5

POLICIES = ('named', 'auto')


class Key(NamedTuple):
    """A property of the matrix: a read under a policy."""

    policy: str
    read: str


#: What a place has seen, by property.
Seen = Mapping[Key, Outcome]


class Board:
    """An object with a property for each read and policy.

    :param program: who reads the properties.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.orm_cache = program.cache

    def get(self, key: Key) -> Outcome:
        """Return what the property gives, in the current unit of work: of one that takes
        arguments, a value by a call of its own, and the others at once."""

        def get() -> Any:
            found = getattr(self, ATTRIBUTES[key])
            if not (arguments := ARGUMENTS[key.read]):
                return found
            items = [each if len(each) > 1 else each[0] for each in arguments[1:]]
            return [found(*arguments[0]), *found.many(items).values()]

        return outcome(get, self.orm_cache.is_conflict)

    def look(self, tenant: str, keys: Sequence[Key]) -> dict[Key, Outcome]:
        """Return what the properties give, each in a unit of work of its own.

        After some reads that waited for a lock, the rest is not read.
        """
        seen: dict[Key, Outcome] = {}
        waits = 0
        for key in keys:
            for _ in range(ATTEMPTS):
                with self.program.unit(tenant):
                    seen[key] = self.get(key)
                if not seen[key].conflict:
                    break
            waits += seen[key].blocked
            if waits == PATIENCE:
                break
        return seen


def add_property(name: str, read: Read, policy: Any) -> None:
    """Add the cached property of a read to the board."""

    creator: Any

    if read.run_one is None:

        def creator(self: Board) -> Any:
            return read.run(self.program.session())

    elif len(read.arguments[0]) == 1:

        def creator(self: Board, first: Any) -> Any:
            return read.run_one(self.program.session(), first)

    else:

        def creator(self: Board, first: Any, second: Any) -> Any:
            return read.run_one(self.program.session(), first, second)

    creator.__name__ = name
    creator.__qualname__ = f'Board.{name}'
    descriptor = orm_cached(policy=policy)(creator)
    setattr(Board, name, descriptor)
    descriptor.__set_name__(Board, name)


def policy_of(read: Read) -> Any:
    """Return the named policy of a read."""
    return [f'on-table-change:{p}' if isinstance(p, str) else p for p in read.policy]


#: The arguments of each read.
ARGUMENTS = {read.name: read.arguments for read in READS}

#: The attribute of each property.
ATTRIBUTES: dict[Key, str] = {}

for _read in READS:
    for _policy in POLICIES:
        _name = f'{_policy}_{_read.slug}'
        ATTRIBUTES[Key(_policy, _read.name)] = _name
        add_property(_name, _read, 'auto' if _policy == 'auto' else policy_of(_read))


def renew(cache: OrmCache) -> None:
    """Make all values invalid, as after a restore of the database."""
    for place in {*cache.places(ONE), *cache.places(TWO)}:
        cache.tags.renew(place)


class Place(Protocol):
    """Where properties are read beside the writer."""

    name: str

    def look(self, tenant: str, keys: Sequence[Key]) -> Seen:
        """Return what the properties give, each in a unit of work of its own."""


class ThreadPlace(AbstractContextManager['ThreadPlace']):
    """Another thread of the writer's process."""

    name = 'thread'

    def __init__(self, board: Board) -> None:
        self._board = board
        self._thread = ThreadPoolExecutor(1)

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def look(self, tenant: str, keys: Sequence[Key]) -> Seen:
        return self._thread.submit(self._board.look, tenant, keys).result()


class ProcessPlace(AbstractContextManager['ProcessPlace']):
    """Another process, which lives as long as the run."""

    name = 'process'

    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context('spawn')
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(settings, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __exit__(self, *error: object) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def look(self, tenant: str, keys: Sequence[Key]) -> Seen:
        self._pipe.send((tenant, list(keys)))
        seen: Seen = self._pipe.recv()
        return seen


def serve(settings: Settings, pipe: Connection) -> None:
    """Answer the questions of a :class:`ProcessPlace`, until it closes the pipe."""
    logging.getLogger('onegov_ormcache').setLevel(logging.ERROR)
    with closing(make_program(settings)) as program:
        board = Board(program)
        while True:
            try:
                tenant, keys = pipe.recv()
            except EOFError:
                return
            pipe.send(board.look(tenant, keys))
