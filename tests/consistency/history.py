"""Runs a random workload in several processes, breaks things meanwhile, and has it judged.

    python -m tests.consistency.history --minutes 5 --isolation 'REPEATABLE READ'

Each process has an application of its own on one PostgreSQL and one Redis, and several
threads that read cached properties and write what they depend on. Processes are killed at
random moments and steps, the tag store is flushed, killed and restarted from old dumps, and
connections are cut. Every operation is recorded, by a write of one line that a SIGKILL
can't take back; `checker.py` judges what was recorded by what the database has in the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
from sqlalchemy import FetchedValue, Select, literal, select, text, union_all, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached, steps
from onegov_ormcache.errors import DatabaseUnreachable, RetryableConflict, StoreUnreachable
from onegov_ormcache.steps import Step
from tests.consistency.checker import Event, Report, Written, check, events_of, upper_bound
from tests.support.servers import RedisServer, drop_schemas, postgres_server

LEVELS = ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
ROWS = ('0', '1', '2')
MISSES = 40
SECOND = 1_000_000_000

#: Steps before which there is something to get wrong by being slow, or by dying.
CRITICAL = (Step.COMMIT, Step.PUBLISH, Step.FILL, Step.CREATOR, Step.SECOND_SNAPSHOT)


# the application


class Base(DeclarativeBase):
    """The declarative base of the workload's tables."""


class Page(Base):
    """A row that is written again and again; the database counts how often."""

    __tablename__ = 'pages'

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    version: Mapped[int] = mapped_column(server_onupdate=FetchedValue(), default=0)


class Ticket(Base):
    """Another one, in another table."""

    __tablename__ = 'tickets'

    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    version: Mapped[int] = mapped_column(server_onupdate=FetchedValue(), default=0)


TABLES: tuple[Any, ...] = (Page, Ticket)

#: In each tenant's schema: numbers the writes of a row, and keeps all that are committed.
JOURNAL = """
CREATE TABLE journal ("row" text, version int, value text);
CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN NEW.version := OLD.version + 1; RETURN NEW; END';
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE format('INSERT INTO %I.journal VALUES ($1, $2, $3)', TG_TABLE_SCHEMA)
        USING TG_TABLE_NAME || '.' || NEW.name, NEW.version, NEW.value;
        RETURN NULL;
    END $$;
"""
TABLE = """
CREATE TABLE {table} (name varchar PRIMARY KEY, value varchar NOT NULL, version int NOT NULL);
CREATE TRIGGER number BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION number();
CREATE TRIGGER note AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION note();
INSERT INTO {table} SELECT name, '{tenant}.{table}.' || name, 0 FROM unnest(%s::text[]) AS name;
"""


def rows_of(table: Any) -> Select[Any]:
    """All rows of a table, with the table's name."""
    return select(
        literal(table.__tablename__).label('table'), table.name, table.version, table.value
    )


class Role(NamedTuple):
    """Who reads; `by_role` properties show each role the row of its name."""

    role: str


class Town(OrmCacheApp):
    """An application with a property of each kind; their values are lists of rows."""

    here = threading.local()

    @property
    def identity(self) -> Role:
        return Role(self.here.role)

    def runs(self, name: str) -> None:
        """A creator runs."""
        self.here.ran.add(name)
        self.here.runs += 1

    @orm_cached(policy='on-table-change:pages')
    def pages(self) -> Any:
        self.runs('pages')
        return self.session().query(*rows_of(Page).selected_columns)

    @orm_cached(policy=Ticket)
    def tickets(self) -> Any:
        self.runs('tickets')
        return [list(row) for row in self.session().execute(rows_of(Ticket))]

    @orm_cached(policy='on-table-change:pages,tickets')
    def both(self) -> Any:
        self.runs('both')
        session = self.session()
        return [tuple(row) for table in TABLES for row in session.execute(rows_of(table))]

    @orm_cached(policy='auto')
    def learned(self) -> Any:
        self.runs('learned')
        pages = self.session().query(Page).all()
        tickets = self.session().execute(rows_of(Ticket))
        return [
            *(('pages', page.name, page.version, page.value) for page in pages),
            *map(tuple, tickets),
        ]

    @orm_cached(policy=lambda obj: isinstance(obj, Page) and obj.name == '0')
    def first(self) -> Any:
        self.runs('first')
        return rows_of(Page).where(Page.name == '0')

    @orm_cached(policy='on-table-change:tickets')
    def nested(self) -> Any:
        self.runs('nested')
        return [*self.pages, *self.tickets]

    @orm_cached(policy='on-table-change:tickets', by_role=True)
    def role(self) -> Any:
        self.runs(f'role {self.here.role}')
        query = rows_of(Ticket).where(Ticket.name == self.here.role)
        return tuple(map(tuple, self.session().execute(query)))

    @request_cached
    def objects(self) -> Any:
        return self.session().query(Ticket).all()

    @orm_cached(policy='auto')
    def through(self) -> Any:
        self.runs('through')
        own = [('tickets', t.name, t.version, t.value) for t in self.objects]
        return [*map(tuple, self.session().execute(rows_of(Page))), *own]


ALL = [f'{table.__tablename__}.{name}' for table in TABLES for name in ROWS]

#: What each property shows; `by_role` properties a row for each role.
SHOWS: dict[str, Callable[[str], Sequence[str]]] = {
    'pages': lambda role: ALL[: len(ROWS)],
    'tickets': lambda role: ALL[len(ROWS) :],
    'both': lambda role: ALL,
    'learned': lambda role: ALL,
    'first': lambda role: ['pages.0'],
    'nested': lambda role: ALL,
    'role': lambda role: [f'tickets.{role}'],
    'through': lambda role: ALL,
}


# the ways to write


def by_object(session: Session, table: Any, name: str, value: str) -> None:
    session.get_one(table, name).value = value


def by_update(session: Session, table: Any, name: str, value: str) -> None:
    session.execute(update(table).where(table.name == name).values(value=value))


def by_bulk(session: Session, table: Any, name: str, value: str) -> None:
    session.execute(update(table), [{'name': name, 'value': value}])


def by_upsert(session: Session, table: Any, name: str, value: str) -> None:
    statement = insert(table).values(name=name, value='', version=0)
    session.execute(
        statement.on_conflict_do_update(index_elements=['name'], set_={'value': value})
    )


def by_text(session: Session, table: Any, name: str, value: str) -> None:
    statement = text(f'UPDATE {table.__tablename__} SET value = :value WHERE name = :name')
    session.execute(statement, {'name': name, 'value': value})


def by_core(session: Session, table: Any, name: str, value: str) -> None:
    core = table.__table__
    session.connection().execute(core.update().where(core.c.name == name).values(value=value))


WAYS = (by_object, by_object, by_update, by_bulk, by_upsert, by_text, by_core)


# a worker process


@dataclass
class Settings:
    """What the workers must know."""

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
        """Takes its time before a step, or never takes it."""
        client: Client | None = getattr(self.here, 'client', None)
        if self.settings.trace:
            self.record('step', client.transaction if client else '', name=step.value)
        if step.value == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        pauses = self.settings.pauses * (5 if step in CRITICAL else 1)
        if client and client.random.random() < pauses:
            time.sleep(client.random.expovariate(1 / 0.01))

    def obey(self) -> None:
        """Take orders until the parent is gone."""
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
        """Set the application up, if its servers can be reached before the end."""
        while time.monotonic_ns() < self.settings.deadline:
            try:
                self.app.setup_orm_cache()
            except (StoreUnreachable, DatabaseUnreachable):
                time.sleep(0.05)
            else:
                return True
        return False

    def find_quiet(self) -> None:
        """See that every property is cached again, now that nothing happens any more."""
        self.app.setup_orm_cache()
        client = Client(self, 0)
        for tenant in self.settings.tenants:
            for name in SHOWS:
                for role in ROWS if name == 'role' else ROWS[:1]:
                    found = client.is_cached_again(tenant, name, role)
                    self.record('quiet' if found else 'never', tenant=tenant, name=name)


class Client:
    """One thread of a worker: a transaction after the other."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.worker = worker
        self.app = worker.app
        self.name = f'{worker.number}.{number}'
        self.random = random.Random(f'{worker.settings.seed}.{self.name}')
        self.count = 0
        self.transaction = ''
        self.tenant = ''
        #: Whether the request scope has had no other transaction and no change.
        self.fresh = True
        #: Whether COMMIT was sent.
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
        """Record how a transaction fails; an error that should not happen goes on."""
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
        """One transaction, in which anything may happen."""
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

    # what happens in a transaction

    def read(self, scope: Any) -> None:
        name = self.random.choice(list(SHOWS))
        here = self.app.here
        here.role = self.random.choice(ROWS)
        here.runs = 0
        at = time.monotonic_ns()
        value = getattr(self.app, name)
        until = time.monotonic_ns()
        key = f'role {here.role}' if name == 'role' else name
        if name == 'through' and not self.fresh:
            return  # request-cached values outlive transactions and changes
        self.seen('read', at, until, key, value, SHOWS[name](here.role), key not in here.ran)

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
        """Write one row or several; they may wait for a flush."""
        chosen = self.random.sample(ALL, self.random.choice((1, 1, 2, 2, 3)))
        if self.random.random() < 0.9:
            chosen.sort()  # otherwise deadlocks would be all that happens
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
                session.flush()  # or an older value of an object would follow
            way(session, table, row.split('.')[1], value)
            if way is not by_object:
                session.expire_all()  # the session does not know
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
        """Another request scope reads, while this one has uncommitted changes."""
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
                getattr(self.app, name)
            if not here.runs:
                return True
            time.sleep(0.05)  # doubts are asked about no more often than that
        return False


def sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, 'orig', None), 'sqlstate', None)


def is_expected(error: BaseException) -> bool:
    """Whether a conflict, a lost connection or a lost store explains the error."""
    if is_conflict(error) or isinstance(error, StoreUnreachable):
        return True
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or (sqlstate(error) or '08').startswith(('08', '57'))


def is_conflict(error: BaseException) -> bool:
    """Whether it went wrong because of another transaction."""
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
    """What a worker process does."""
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


# the parent, which breaks things


@dataclass
class Plan:
    """How much is done, and how much of it is broken."""

    isolation: str = LEVELS[0]
    seconds: float = 60
    processes: int = 4
    threads: int = 3
    tenants: int = 2
    kills_per_minute: float = 12
    losses_per_minute: float = 8
    cuts_per_minute: float = 12
    pauses: float = 0.02
    seed: int = 0
    trace: bool = False
    mutant: str | None = None


class Outcome(NamedTuple):
    """What a run has shown."""

    report: Report
    #: What was broken, and how often.
    broken: Counter[str]
    conflicts: int
    failures: int
    creator_runs: int

    @property
    def operations(self) -> int:
        counts = self.report.counts
        return sum(counts[k] for k in ('begin', 'read', 'direct', 'write', 'undo', 'commit'))

    def summary(self, seconds: float) -> str:
        counts, violations = self.report.counts, self.report.violations
        losses = sum(n for name, n in self.broken.items() if name.startswith('store'))
        cuts = sum(n for name, n in self.broken.items() if name.startswith('connection'))
        bound = upper_bound(len(violations), self.report.judged)
        return '\n'.join(
            [
                *map(str, violations[:10]),
                f'{seconds:.0f} s, {self.operations} operations',
                f'reads of properties     {self.report.judged}, {self.report.cached} cached',
                f'commits                 {counts["committed"]} of {counts["commit"]}',
                f'creator runs            {self.creator_runs}',
                f'conflicts               {self.conflicts}',
                f'other failures          {self.failures}',
                f'kills                   {self.broken["kill"]}',
                f'store losses            {losses}',
                f'connection losses       {cuts}',
                *(f'    {name:20}{n}' for name, n in sorted(self.broken.items())),
                f'violations              {len(violations)} {dict(self.kinds())}',
                f'violations per read     below {bound:.2e} with 95 % confidence',
            ]
        )

    def kinds(self) -> Counter[str]:
        return Counter(violation.promise for violation in self.report.violations)


class Parent:
    """Starts workers, breaks what they use, and replaces those that were killed.

    :param dsn: the SQLAlchemy URL of a PostgreSQL server.
    :param store: a Redis server of the run's own.
    """

    def __init__(self, plan: Plan, dsn: str, store: RedisServer, folder: Path) -> None:
        self.plan = plan
        self.store = store
        self.folder = folder
        self.random = random.Random(plan.seed)
        prefix = f'h{uuid4().hex[:12]}'
        url = make_url(dsn).set(drivername='postgresql')
        self.connection = psycopg.connect(
            url.render_as_string(hide_password=False), autocommit=True
        )
        self.settings = Settings(
            dsn=dsn,
            redis_url=store.url,
            folder=str(folder),
            prefix=prefix,
            tenants=[f'{prefix}_{number}' for number in range(plan.tenants)],
            isolation=plan.isolation,
            threads=plan.threads,
            seed=plan.seed,
            deadline=0,
            pauses=plan.pauses,
            trace=plan.trace,
            mutant=plan.mutant,
        )
        self.workers: list[subprocess.Popen[str]] = []
        self.started = 0
        self.broken: Counter[str] = Counter()

    # workers

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start a worker; it ends with the pipe to its parent at the latest."""
        arguments = ['--worker', str(self.started), json.dumps(asdict(self.settings)), *options]
        with (self.folder / f'errors.{self.started}').open('wb') as errors:
            worker = subprocess.Popen(
                [sys.executable, '-m', 'tests.consistency.history', *arguments],
                stdin=subprocess.PIPE,
                stderr=errors,
                cwd=Path(__file__).parents[2],
                process_group=0,
                text=True,
            )
        self.started += 1
        self.workers.append(worker)
        return worker

    def replace_dead(self) -> None:
        for worker in list(self.workers):
            if worker.poll() is not None:
                self.gone(worker)
                self.start()

    def gone(self, worker: subprocess.Popen[str]) -> None:
        """A worker has ended; only by a kill may it do so before its time."""
        self.workers.remove(worker)
        hang_up(worker)
        if worker.returncode == -signal.SIGKILL:
            self.broken['kill'] += 1
        elif worker.returncode != 0:
            errors = [path.read_text() for path in sorted(self.folder.glob('errors.*'))]
            raise RuntimeError(f'A worker ended with {worker.returncode}:\n{"".join(errors)}')

    def stop(self) -> None:
        """End all workers, also those that hang."""
        for worker in self.workers:
            worker.kill()
        for worker in self.workers:
            worker.wait()
            hang_up(worker)
        self.workers.clear()

    # what is broken

    def kill(self) -> None:
        self.random.choice(self.workers).kill()

    def kill_at_step(self) -> None:
        stdin = self.random.choice(self.workers).stdin
        assert stdin is not None
        try:
            stdin.write(self.random.choice([*Step, *CRITICAL, *CRITICAL]).value + '\n')
            stdin.flush()
        except BrokenPipeError:
            pass  # it has just died of something else

    def flush(self) -> None:
        with closing(self.store.client()) as client:
            client.flushall()
        self.broken['store flushed'] += 1

    def delete_keys(self) -> None:
        with closing(self.store.client()) as client:
            for key in self.random.sample(keys := sorted(client.keys()), len(keys) // 2):
                client.delete(key)
        self.broken['store keys deleted'] += 1

    def restart_empty(self) -> None:
        self.store.kill()
        (self.store.folder / 'dump.rdb').unlink(missing_ok=True)
        time.sleep(self.random.choice((0, 0.3)))
        self.store.start()
        self.broken['store restarted'] += 1

    def save(self) -> None:
        self.store.save()

    def restore(self) -> None:
        self.store.kill()
        self.store.start()
        self.broken['store restored'] += 1

    def cut_database(self) -> None:
        query = 'SELECT pid FROM pg_stat_activity WHERE application_name = %s'
        pids = [pid for (pid,) in self.connection.execute(query, [self.settings.prefix])]
        if pids:
            self.connection.execute(
                'SELECT pg_terminate_backend(%s)', [self.random.choice(sorted(pids))]
            )
            self.broken['connection to database'] += 1

    def cut_store(self) -> None:
        with closing(self.store.client()) as client:
            others = [c['id'] for c in client.client_list() if c['id'] != str(client.client_id())]
            if others:
                client.client_kill_filter(_id=self.random.choice(others))
                self.broken['connection to store'] += 1

    def schedule(self) -> list[tuple[float, Callable[[], None]]]:
        """What is broken when, in seconds from the begin; of each kind once at least."""
        plan, at = self.plan, []
        kinds: tuple[tuple[float, list[Callable[[], None]]], ...] = (
            (plan.kills_per_minute, [self.kill, self.kill_at_step, self.kill_at_step]),
            (plan.losses_per_minute, [self.flush, self.delete_keys, self.restart_empty]),
            (plan.losses_per_minute / 3, [self.restore]),
            (plan.cuts_per_minute, [self.cut_database, self.cut_database, self.cut_store]),
        )
        for rate, actions in kinds:
            number = max(1, round(rate * plan.seconds / 60)) if rate else 0
            for turn in range(number):
                moment = self.random.uniform(0.15, 0.95) * plan.seconds
                action = actions[turn % len(actions)]
                at.append((moment, action))
                if action == self.restore:
                    at.append((moment - 0.12 * plan.seconds * self.random.random(), self.save))
        return sorted(at, key=lambda entry: entry[0])

    # the run

    def prepare(self) -> None:
        """Make the tenants, so that their journals are there from the first write on."""
        for tenant in self.settings.tenants:
            self.connection.execute(f'CREATE SCHEMA {tenant}')
            self.connection.execute(f'SET search_path = {tenant}')
            self.connection.execute(JOURNAL)
            for table in TABLES:
                name = table.__tablename__
                for statement in TABLE.format(table=name, tenant=tenant).split(';\n'):
                    wanted = [list(ROWS)] if '%s' in statement else None
                    if statement.strip():
                        self.connection.execute(statement, wanted)

    def run(self) -> Outcome:
        """Run the plan, and judge what has happened."""
        try:
            self.prepare()
            begin = time.monotonic_ns()
            self.settings.deadline = begin + int(self.plan.seconds * SECOND)
            for _ in range(self.plan.processes):
                self.start()
            for moment, action in self.schedule():
                while time.monotonic_ns() < begin + moment * SECOND:
                    self.replace_dead()
                    time.sleep(0.02)
                action()
                self.record(action.__name__)
            self.wait(begin + int((self.plan.seconds + 40) * SECOND))
            self.start('--quiet')
            self.wait(time.monotonic_ns() + 120 * SECOND)
            return self.judge()
        finally:
            self.stop()
            self.connection.close()
            drop_schemas(self.settings.dsn, self.settings.prefix)

    def record(self, name: str) -> None:
        """Something was broken."""
        with (self.folder / 'events.parent').open('ab') as file:
            file.write(Event('broken', '', time.monotonic_ns(), name=name).line())

    def wait(self, deadline: int) -> None:
        """Wait for all workers to end by themselves."""
        for worker in list(self.workers):
            worker.wait(timeout=max(0, deadline - time.monotonic_ns()) / SECOND)
            self.gone(worker)

    def judge(self) -> Outcome:
        journal: dict[str, list[Written]] = {}
        for tenant in self.settings.tenants:
            rows = self.connection.execute(f'SELECT "row", version, value FROM {tenant}.journal')
            journal[tenant] = [Written(*row) for row in rows]
        events: list[Event] = []
        for path in sorted(self.folder.glob('events.*')):
            with path.open('rb') as lines:
                events += events_of(lines)
        report = check(events, journal, self.plan.isolation)
        ends = [e.name for e in events if e.kind in ('failed', 'rolled back') and e.name]
        conflicts = sum(name.startswith('conflict') for name in ends)
        runs = sum(event.runs for event in events)
        return Outcome(report, self.broken, conflicts, len(ends) - conflicts, runs)


def hang_up(worker: subprocess.Popen[str]) -> None:
    """Close the pipe of a worker that has ended."""
    assert worker.stdin is not None
    try:
        worker.stdin.close()
    except BrokenPipeError:
        pass  # an order that it did not live to read


def run(plan: Plan, dsn: str | None = None, keep: str | None = None) -> Outcome:
    """Run the plan on a database, or on one of its own.

    :param dsn: the SQLAlchemy URL of a PostgreSQL server; its other schemas are left alone.
    :param keep: a folder for what is recorded; by default it is removed in the end.
    """
    with ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(keep)
            folder.mkdir(parents=True)
        given = dsn or stack.enter_context(postgres_server())
        store = stack.enter_context(RedisServer())
        return Parent(plan, given, store, folder).run()


def main(arguments: Sequence[str]) -> int:
    """What the command line does; returns the exit status."""
    if arguments[:1] == ['--worker']:
        work(Settings(**json.loads(arguments[2])), int(arguments[1]), '--quiet' in arguments)
        return 0
    parser = argparse.ArgumentParser('python -m tests.consistency.history', description=__doc__)
    parser.add_argument('--minutes', type=float, default=1)
    parser.add_argument('--seconds', type=float, help='instead of --minutes')
    parser.add_argument('--isolation', choices=LEVELS, default=LEVELS[0])
    parser.add_argument('--seed', type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument('--keep', help='a new folder for the recorded events')
    parser.add_argument('--trace', action='store_true', help='record the steps too')
    parser.add_argument('--mutant', help='remove a guard: a name in tests/consistency/mutants.py')
    defaults = Plan()
    for name in ('processes', 'threads', 'tenants'):
        parser.add_argument(f'--{name}', type=int, default=getattr(defaults, name))
    for name in ('kills_per_minute', 'losses_per_minute', 'cuts_per_minute', 'pauses'):
        option = f'--{name.replace("_", "-")}'
        parser.add_argument(option, type=float, default=getattr(defaults, name))
    chosen = vars(parser.parse_args(arguments))
    minutes, seconds, keep = (chosen.pop(name) for name in ('minutes', 'seconds', 'keep'))
    plan = Plan(seconds=60 * minutes if seconds is None else seconds, **chosen)
    print(f'{plan}', flush=True)
    outcome = run(plan, keep=keep)
    print(outcome.summary(plan.seconds))
    return 1 if outcome.report.violations else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
