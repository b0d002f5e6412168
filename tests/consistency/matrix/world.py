"""The world of a run: the database, a program, the places where its properties are read."""

from __future__ import annotations

import logging
import random
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from uuid import uuid4

from .places import (
    POLICIES,
    Board,
    Key,
    Place,
    ProcessPlace,
    ThreadPlace,
    renew,
)
from .programs import Program, Settings, make_program
from .reads import READS
from .results import Plan, Report
from .schema import ONE, TWO
from .truth import PostgresTruth, SQLiteTruth, Truth, values
from .writes import WRITES


class World:
    """Two tenants, a program with its places, and what is read without a cache.

    :param truth: the database, with tenants that are built.
    :param settings: of the programs.
    :param stack: ends what is begun here.
    """

    def __init__(self, truth: Truth, settings: Settings, stack: ExitStack, plan: Plan) -> None:
        self.truth = truth
        self.plan = plan
        self.reads = [
            read
            for read in READS
            if truth.name in read.databases and re.search(plan.only_reads, read.name)
        ]
        self.writes = [
            write
            for write in WRITES
            if truth.name in write.databases
            and (write.hosts or not plan.host)
            and re.search(plan.only, write.name)
        ]
        self.program: Program = stack.enter_context(closing(make_program(settings)))
        self.board = Board(self.program)
        self.thread = stack.enter_context(ThreadPlace(self.board))
        self.places: list[Place] = [self.thread]
        if settings.redis_url is not None:
            self.places.append(stack.enter_context(ProcessPlace(settings)))
        self.random = random.Random(plan.seed)
        #: What the first and the second tenant show before a write.
        self.before = values(truth, ONE, self.reads)
        self.neighbour = values(truth, TWO, self.reads)
        self.report = Report(plan, len(self.reads), properties=len(self.reads) * len(POLICIES))

    def count_stored(self) -> None:
        """Count the properties that a tier has after a read of all of them.

        Where no value is stored, none can be stale.
        """
        keys = [Key(policy, read.name) for read in self.reads for policy in POLICIES]
        self.thread.look(ONE, keys)
        with self.program.cache.recording() as events:
            self.thread.look(ONE, keys)
        read = {event.name for event in events if event.kind == 'read' and event.tier != 'creator'}
        self.report.stored = len(read)

    def clean(self, rebuild: bool) -> None:
        """Give the tenants their first rows, and make all values invalid.

        :param rebuild: make the tenants anew, after a change of definitions.
        """
        if rebuild:
            self.truth.build()
        else:
            self.truth.restore()
        renew(self.program.cache)


@contextmanager
def quiet() -> Iterator[None]:
    """Log errors alone while the block runs: that values are not stored is no news here."""
    log = logging.getLogger('onegov_ormcache')
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def make_world(plan: Plan, dsn: str, redis_url: str | None) -> Iterator[World]:
    """Make the tenants and programs for a plan, and remove them at the end.

    SQLite is used by one process, which keeps versions and values in its memory.

    :param dsn: SQLAlchemy URL of a PostgreSQL superuser; not used for SQLite.
    :param redis_url: not used for SQLite.
    """
    with ExitStack() as stack:
        stack.enter_context(quiet())
        truth: Truth
        if plan.database == 'sqlite':
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            # on Redis, no value would be stored for a lease after each restore
            truth, dsn, redis_url = SQLiteTruth(folder), f'sqlite:///{folder}', None
        else:
            truth = PostgresTruth(dsn, plan.host)
        stack.callback(truth.close)
        truth.build()
        namespace = f'matrix-{uuid4().hex[:12]}'
        settings = Settings(
            plan.database, dsn, redis_url, namespace, plan.isolation, plan.host
        )
        yield World(truth, settings, stack, plan)
