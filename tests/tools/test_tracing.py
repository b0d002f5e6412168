"""Spans and metrics for OpenTelemetry, by its own SDK."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from onegov_ormcache import OrmCache, orm_cached, steps
from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.tools.tracing import instrument
from tests.support.backends import Backend
from tests.support.models import Base, User


class Names:
    """An object with properties, one of which reads the other."""

    def __init__(self, cache: OrmCache) -> None:
        self.orm_cache = cache
        self.first: Any = lambda: None

    @orm_cached(policy=User)
    def users(self) -> list[str]:
        self.first()
        return [name for (name,) in self.orm_cache.session().query(User.name)]

    @orm_cached(policy=User)
    def count(self) -> int:
        return len(self.users)

    @orm_cached(policy='auto')
    def nothing(self) -> int:
        return 1


WHERE = f'{__name__}.Names'


class Telemetry:
    """The providers of a test, and what they have exported."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.meters = MeterProvider([self.reader])

    def instrument(self, cache: OrmCache) -> None:
        """Make spans and metrics of a cache."""
        instrument(cache, tracer_provider=self.tracers, meter_provider=self.meters)

    def spans(self) -> list[ReadableSpan]:
        """Return the spans since the last call, in the order of their ends."""
        spans = [*self.exporter.get_finished_spans()]
        self.exporter.clear()
        return spans

    def numbers(self) -> dict[str, dict[tuple[Any, ...], float]]:
        """Return the numbers of all metrics, by name and sorted attributes."""
        found: dict[str, dict[tuple[Any, ...], float]] = {}
        data: Any = self.reader.get_metrics_data()
        for metric in data.resource_metrics[0].scope_metrics[0].metrics:
            points = found[metric.name] = {}
            for point in metric.data.data_points:
                points[tuple(sorted(point.attributes.items()))] = point.value
        return found

    def close(self) -> None:
        """End the threads of the SDK."""
        self.tracers.shutdown()
        self.meters.shutdown()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has made."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def telemetry(stack: ExitStack) -> Telemetry:
    """The providers of the test."""
    made = Telemetry()
    stack.callback(made.close)
    return made


@pytest.fixture
def cache(backend: Backend, telemetry: Telemetry, stack: ExitStack, tenant: str) -> OrmCache:
    """A cache of which spans and metrics are made."""
    cache = stack.enter_context(OrmCache(base=Base, **backend.settings))
    telemetry.instrument(cache)
    with cache.scope(tenant) as scope:
        scope.session().connection()
    return cache


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Return the attributes of a span."""
    return dict(span.attributes or {})


def test_runs_of_creators(cache: OrmCache, telemetry: Telemetry, tenant: str) -> None:
    """Each run of a creator is a span, within that of the creator that reads it, or of the
    application. A hit is none."""
    with telemetry.tracers.get_tracer('app').start_as_current_span('GET /'):
        with cache.scope(tenant):
            assert Names(cache).count == 0
    inner, outer, request = telemetry.spans()
    assert (inner.name, outer.name) == (
        f'ormcache.creator {WHERE}.users', f'ormcache.creator {WHERE}.count'
    )  # fmt: skip
    assert inner.parent is not None
    assert outer.parent is not None
    assert inner.parent.span_id == outer.context.span_id  # type: ignore[union-attr]
    assert outer.parent.span_id == request.context.span_id  # type: ignore[union-attr]
    assert attributes(inner) == {
        'ormcache.tenant': tenant, 'ormcache.property': f'{WHERE}.users',
        'code.function.name': f'{WHERE}.users',
    }  # fmt: skip
    [stored] = request.events
    assert stored.name == 'ormcache.stored'
    assert stored.attributes is not None
    assert stored.attributes['ormcache.property'] == f'{WHERE}.count'
    with cache.scope(tenant):
        assert Names(cache).count == 0
    assert telemetry.spans() == []


def test_commits(cache: OrmCache, telemetry: Telemetry, tenant: str) -> None:
    """Doubt and publication are spans, with the number of the tags."""
    with cache.scope(tenant) as scope:
        scope.session().add(User(name='the secret'))
        scope.commit()
    doubt, publish = telemetry.spans()
    assert (doubt.name, publish.name) == ('ormcache.doubt', 'ormcache.publish')
    for span in doubt, publish:
        assert attributes(span) == {'ormcache.tenant': tenant, 'ormcache.tags': 1}


def test_waits(
    cache: OrmCache, telemetry: Telemetry, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for another caller's run has a span for that."""
    begun, waiting, go_on = Event(), Event(), Event()
    waits = lambda step: waiting.set() if step is steps.Step.WAIT else None  # noqa: E731
    monkeypatch.setattr(steps, 'listener', waits)
    names = Names(cache)
    names.first = lambda: (begun.set(), go_on.wait(30))

    def read() -> Any:
        with cache.scope(tenant):
            return names.users

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read)
        assert begun.wait(30)
        second = pool.submit(read)
        assert waiting.wait(30)
        go_on.set()
        assert first.result(30) == second.result(30)
    spans = {span.name for span in telemetry.spans()}
    assert spans == {f'ormcache.creator {WHERE}.users', f'ormcache.wait {WHERE}.users'}


def test_errors(cache: OrmCache, telemetry: Telemetry, tenant: str) -> None:
    """A creator that fails has a span with the type of its error, and not with the text."""
    names = Names(cache)

    def fail() -> None:
        raise ValueError('the secret')

    names.first = fail
    with cache.scope(tenant), pytest.raises(ValueError, match='the secret'):
        names.users
    [span] = telemetry.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)['error.type'] == 'builtins.ValueError'
    assert 'the secret' not in span.to_json()


def test_why_a_value_is_not_stored(cache: OrmCache, telemetry: Telemetry, tenant: str) -> None:
    """What becomes of a value is an event of the current span."""
    with telemetry.tracers.get_tracer('app').start_as_current_span('GET /'):
        with cache.scope(tenant) as scope:
            Names(cache).nothing
            scope.session().add(User(name='a'))
            Names(cache).count
    request = telemetry.spans()[-1]
    events = [(each.name, (each.attributes or {})['ormcache.reason']) for each in request.events]
    assert ('ormcache.not_stored', 'tainted') in events
    assert ('ormcache.bypass', 'own change') in events


def test_metrics_of_the_process(
    cache: OrmCache, telemetry: Telemetry, backend: Backend, stack: ExitStack, tenant: str
) -> None:
    """The metrics are those of this process, under the names that Prometheus has."""
    for _ in range(3):
        with cache.scope(tenant) as scope:
            Names(cache).users
    with cache.scope(tenant) as scope:
        scope.session().add(User(name='a'))
        scope.commit()
    if backend.name == 'servers':
        with stack.enter_context(OrmCache(base=Base, **backend.settings)) as other:
            with other.scope(tenant):
                Names(other).users
    numbers = telemetry.numbers()
    manager = ('cache.manager', cache.settings.namespace)
    of_users = ('cache', f'{WHERE}.users'), manager
    assert numbers['cache.gets'][*of_users, ('result', 'hit'), ('tier', 'process')] == 2
    assert numbers['cache.gets'][*of_users, ('result', 'miss'), ('tier', 'creator')] == 1
    assert numbers['cache.load.duration.count'][of_users] == 1
    assert 0 < numbers['cache.load.duration'][of_users] < 10
    assert numbers['cache.commits'][manager,] == 1
    assert numbers['cache.evictions'][manager, ('tag', 'table:users')] == 1
    assert numbers['cache.size'][manager, ('tier', 'process')] == 1


def test_twice(cache: OrmCache, telemetry: Telemetry) -> None:
    """A cache is instrumented once, and nothing else is."""
    with pytest.raises(ConfigurationError, match='instrumented already'):
        telemetry.instrument(cache)
    with pytest.raises(ConfigurationError, match='no OrmCache'):
        telemetry.instrument('town')  # type: ignore[arg-type]


def test_without_the_extra() -> None:
    """Without OpenTelemetry nothing of it is imported, and a sentence says what to do."""
    script = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        'from onegov_ormcache import OrmCache, errors\n'
        'from onegov_ormcache.tools.tracing import instrument\n'
        'from sqlalchemy import MetaData\n'
        'try:\n    instrument(OrmCache(base=MetaData(), lazy=True))\n'
        'except errors.MissingExtraError as error:\n    print(error)\n'
    )
    said = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert 'python -m pip install "onegov_ormcache[opentelemetry]"' in said.stdout, said.stderr
