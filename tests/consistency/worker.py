"""One process of the workload: its threads do transactions at random, and record them.

Each record is one write of one line, which a SIGKILL can't take back.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import union_all
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from onegov_ormcache import steps
from onegov_ormcache.errors import DatabaseUnreachable, RetryableConflict, StoreUnreachable
from onegov_ormcache.steps import Step
from tests.consistency.events import Event
from tests.consistency.workload import (
    ALL,
    BY_ROLE,
    ROWS,
    SHOWS,
    TABLES,
    WAYS,
    Base,
    Book,
    Town,
    by_object,
    note,
    read,
    rows_of,
    runs_of,
)

#: How often a property may be computed when all is quiet, before it counts as never cached.
MISSES = 40

#: Steps before which a pause or a death is most likely to bring a mistake to light.
CRITICAL = (Step.COMMIT, Step.PUBLISH, Step.FILL, Step.CREATOR, Step.SECOND_SNAPSHOT)


@dataclass
class Settings:
    """The settings of a run, which each worker gets from its parent."""

    dsn: str
    redis_url: str
    folder: str
    prefix: str
    tenants: list[str]
    isolation: str
    threads: int
    seed: int
    deadline: int
    pauses: float
    trace: bool
    mutant: str | None
    on_outage: str


class Failure(Exception):
    """The transaction ends with an error that was expected, and is recorded."""


class Worker:
    """One process: an application, its threads, and the file that they record in."""

    def __init__(self, settings: Settings, number: int) -> None:
        self.settings = settings
        self.number = number
        path = Path(settings.folder) / f'events.{number}'
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.app = application(settings)
        #: The step at which the process must end itself.
        self.fatal: str | None = None
        self.here = threading.local()

    def record(self, kind: str, transaction: str = '', at: int = 0, **fields: Any) -> None:
        os.write(self.file, Event(kind, transaction, at or time.monotonic_ns(), **fields).line())

    def step(self, step: Step) -> None:
        """Pause at random before a step, or kill the process if the step is `fatal`."""
        client: Client | None = getattr(self.here, 'client', None)
        if self.settings.trace:
            self.record('step', client.transaction if client else '', name=step.value)
        if step.value == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        pauses = self.settings.pauses * (5 if step in CRITICAL else 1)
        if client and client.random.random() < pauses:
            time.sleep(client.random.expovariate(1 / 0.01))

    def obey(self) -> None:
        """Read from the parent at which step to die; end the process when the parent is gone."""
        for line in sys.stdin:
            self.fatal = line.strip()
        os._exit(1)

    def run(self) -> None:
        if not self.set_up():
            return
        steps.listener = self.step
        clients = [Client(self, number) for number in range(self.settings.threads)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def set_up(self) -> bool:
        """Set up the application; return False if its servers can't be reached before the
        deadline."""
        while time.monotonic_ns() < self.settings.deadline:
            try:
                self.app.setup_orm_cache()
            except (StoreUnreachable, DatabaseUnreachable):
                time.sleep(0.05)
            else:
                return True
        return False

    def find_quiet(self) -> None:
        """Record for every property if it is cached again, now that nothing happens any more."""
        self.app.setup_orm_cache()
        client = Client(self, 0)
        for tenant in self.settings.tenants:
            for name in SHOWS:
                for role in ROWS if name in BY_ROLE else ROWS[:1]:
                    found = client.is_cached_again(tenant, name, role)
                    self.record('quiet' if found else 'never', tenant=tenant, name=name)


class Client:
    """One thread of a worker, which does one transaction after the other."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.app = worker.app
        self.name = f'{worker.number}.{number}'
        self.random = random.Random(f'{worker.settings.seed}.{self.name}')
        self.count = 0
        self.transaction = ''
        self.tenant = ''
        #: True as long as the request scope has had no other transaction and no change.
        self.fresh = True
        #: True once COMMIT was sent.
        self.sent = False

    def run(self) -> None:
        self.worker.here.client = self
        while time.monotonic_ns() < self.worker.settings.deadline:
            try:
                self.scope(self.random.choice(self.worker.settings.tenants))
            except Failure:
                pass
            except Exception:
                self.record('error', name=traceback.format_exc())

    def record(self, kind: str, at: int = 0, **fields: Any) -> None:
        self.worker.record(kind, self.transaction, at, **fields)

    def scope(self, tenant: str) -> None:
        self.tenant = tenant
        self.app.here.role = ''
        with self.expected(), self.app.request_scope(tenant) as scope:
            self.fresh = True
            for _ in range(self.random.choice((1, 1, 1, 2, 3))):
                with self.expected():
                    self.transact(scope)
                self.fresh = False

    def begin(self) -> None:
        self.count += 1
        self.transaction = f'{self.name}.{self.count}'
        self.sent = False
        self.app.here.ran, self.app.here.runs = set(), 0
        self.record('begin', tenant=self.tenant)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Record how a transaction fails; raise Failure in place of an expected error.

        An error that is not expected is raised again.
        """
        try:
            yield
        except Failure:
            raise
        except Exception as error:
            state = sqlstate(error)
            name = f'{type(error).__name__} {state or ""}: {error}'.splitlines()[0]
            if is_conflict(error):
                name = f'conflict: {name}'
            known = isinstance(error, (RetryableConflict, StoreUnreachable)) or not (
                state is None or state.startswith(('08', '57', '40003'))
            )
            self.record('rolled back' if self.sent and known else 'failed', name=name)
            self.transaction = ''
            if not is_expected(error):
                raise
            raise Failure from error

    def transact(self, scope: Any) -> None:
        """Do one transaction, in which anything may happen."""
        self.begin()
        chance = self.random.random
        writes = chance() < 0.3
        actions: list[Callable[[Any], None]] = [self.read, self.read, self.read, self.direct]
        if writes:
            actions = [self.read, self.read, self.write, self.savepoint, self.elsewhere]
            if chance() < 0.5:
                self.read(scope)
            if chance() < 0.8:
                self.write(scope)
        for _ in range(self.random.randint(0 if writes else 1, 4)):
            self.random.choice(actions)(scope)
        if chance() < (0.85 if writes else 0.3):
            self.sent = True
            self.record('commit')
            scope.session().commit()
            self.record('committed')
        else:
            scope.session().rollback()
            self.record('rolled back')
        self.transaction = ''

    # the operations of a transaction

    def read(self, scope: Any) -> None:
        name = self.random.choice(list(SHOWS))
        here = self.app.here
        here.role = self.random.choice(ROWS)
        here.runs = 0
        at = time.monotonic_ns()
        value = read(self.app, name, here.role)
        until = time.monotonic_ns()
        key = f'{name} {here.role}' if name in BY_ROLE else name
        if name == 'through' and not self.fresh:
            return  # request-cached values outlive transactions and changes
        is_cached = runs_of(name, here.role).isdisjoint(here.ran)
        self.seen('read', at, until, key, value, SHOWS[name](here.role), is_cached)

    def direct(self, scope: Any) -> None:
        scope.session().flush()
        at = time.monotonic_ns()
        value = scope.session().execute(union_all(*map(rows_of, TABLES))).all()
        self.seen('direct', at, time.monotonic_ns(), 'the database', value, ALL, False)

    def seen(
        self,
        kind: str,
        at: int,
        until: int,
        name: str,
        value: Any,
        wanted: Sequence[str],
        cached: bool,
    ) -> None:
        rows = {f'{table}.{row}': (version, value) for table, row, version, value in value}
        missing = [row for row in wanted if row not in rows]
        strange = [row for row in rows if row not in wanted]
        self.record(
            kind,
            at,
            until=until,
            name=name,
            rows=rows,
            cached=cached,
            missing=missing + strange,
            runs=self.app.here.runs if kind == 'read' else 0,
        )

    def write(self, scope: Any) -> None:
        self.change(scope.session())
        if self.random.random() < 0.5:
            self.read(scope)

    def change(self, session: Session) -> dict[str, tuple[int, str]]:
        """Write one row or several, some of them at the next flush only; return the values."""
        chosen = self.random.sample(ALL, self.random.choice((1, 1, 2, 2, 3)))
        if self.random.random() < 0.9:
            chosen.sort()  # without an order there would be little else than deadlocks
        rows = {}
        for row in chosen:
            self.count += 1
            rows[row] = (0, f'{self.transaction}:{self.count}')
        self.record('write', rows=rows)
        self.fresh = False
        for row, (_, value) in rows.items():
            table = TABLES[ALL.index(row) // len(ROWS)]
            way = self.random.choice(WAYS)
            if way is not by_object:
                session.flush()  # or a later flush would write an object's older value
            way(session, table, row.split('.')[1], value)
            if way is not by_object:
                session.expire_all()  # the session does not know of the change
            if table is Book:
                note(session, row.split('.')[1])
        return rows

    def savepoint(self, scope: Any) -> None:
        session = scope.session()
        nested = session.begin_nested()
        rows = self.change(session)
        if self.random.random() < 0.5:
            self.read(scope)
        if self.random.random() < 0.3:
            nested.commit()
        else:
            nested.rollback()
            self.record('undo', rows=rows)
        if self.random.random() < 0.5:
            self.read(scope)

    def elsewhere(self, scope: Any) -> None:
        """Read in another request scope, while this one has uncommitted changes."""
        here = self.app.here
        kept = self.transaction, self.fresh, here.ran
        try:
            self.scope_of_reads()
        except Failure:
            pass
        finally:
            self.transaction, self.fresh, here.ran = kept

    def scope_of_reads(self) -> None:
        with self.expected(), self.app.request_scope(self.tenant) as scope:
            self.begin()
            self.fresh = True
            for _ in range(2):
                self.read(scope)
            self.record('rolled back')
            self.transaction = ''

    def is_cached_again(self, tenant: str, name: str, role: str) -> bool:
        here = self.app.here
        for _ in range(MISSES):
            here.role, here.ran, here.runs = role, set(), 0
            with self.app.request_scope(tenant):
                read(self.app, name, role)
            if not here.runs:
                return True
            time.sleep(0.05)  # the database is asked about a doubt no more often than that
        return False


def sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, 'orig', None), 'sqlstate', None)


def is_expected(error: BaseException) -> bool:
    """Return whether a conflict, a lost connection or a lost store explains the error."""
    if is_conflict(error) or isinstance(error, StoreUnreachable):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or (sqlstate(error) or '08').startswith(('08', '57'))


def is_conflict(error: BaseException) -> bool:
    """Return whether another transaction caused the error."""
    return isinstance(error, RetryableConflict) or sqlstate(error) in ('40001', '40P01', '55P03')


def application(settings: Settings) -> Town:
    """The application of one process."""

    class App(Town):
        pass

    App.__qualname__ = 'Town'

    @App.setting_section(section='orm_cache')
    def orm_cache_settings() -> dict[str, Any]:
        return {
            'dsn': settings.dsn,
            'base': Base,
            'redis_url': settings.redis_url,
            'namespace': settings.prefix,
            'lock_timeout': 1.0,
            'on_outage': settings.on_outage,
            'engine_options': {
                'isolation_level': settings.isolation,
                'pool_size': 2 * settings.threads,
                'connect_args': {
                    'application_name': settings.prefix,
                    'options': '-c lock_timeout=3s',
                },
            },
        }

    return App()


def work(settings: Settings, number: int, quiet: bool) -> None:
    """Run a worker process.

    :param quiet: True to see if all properties are cached again; False to do transactions.
    """
    with ExitStack() as stack:
        if settings.mutant:
            from tests.consistency.mutants import MUTANTS

            stack.enter_context(MUTANTS[settings.mutant]())
        worker = Worker(settings, number)
        threading.Thread(target=worker.obey, daemon=True).start()
        if quiet:
            worker.find_quiet()
        else:
            worker.run()


if __name__ == '__main__':
    # the arguments: the worker's number, the settings as JSON, `--quiet` for the last worker
    work(Settings(**json.loads(sys.argv[2])), int(sys.argv[1]), '--quiet' in sys.argv)
