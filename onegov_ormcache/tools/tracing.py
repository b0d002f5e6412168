"""Spans and metrics for OpenTelemetry.

A span for each run of a creator, each wait for another caller's run, each doubt and each
publication of new versions, with the attributes of OpenTelemetry's semantic conventions where
there are any. Spans have no values, arguments or texts of errors. The metrics are those of
:mod:`.measures`, of this process alone: whoever collects them adds up the processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from weakref import ref

from ..core.cache import OrmCache
from ..core.story import Attribute
from ..errors import ConfigurationError, MissingExtraError
from .measures import (
    DEFINITIONS,
    HasCache,
    Kind,
    Measure,
    cache_of,
    of_process,
    of_tenant,
    require_cache,
)

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Tracer as OpenTelemetryTracer
    from opentelemetry.trace import TracerProvider

#: The name of the package's tracer and meter.
NAME = 'onegov_ormcache'

#: Seconds for which the numbers of one look serve all instruments.
MEMORY = 0.5


def instrument(
    source: OrmCache | HasCache,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> None:
    """Make spans and metrics of what a cache does, from now on until it is closed.

    :param source: a cache, or a root app.
    :param tracer_provider: by default the global one.
    :param meter_provider: by default the global one.
    :raises ConfigurationError: if there is no cache, or spans are made of it already.
    :raises MissingExtraError: if opentelemetry-api is not installed.
    """
    require_cache(source)
    api, cache = _api(), cache_of(source)
    if cache.stories.tracer is not None:
        raise ConfigurationError(f'{cache!r} is instrumented already; do so once for each cache')
    release = version(NAME)
    cache.stories.tracer = Spans(api.trace.get_tracer(NAME, release, tracer_provider))
    meter = api.metrics.get_meter(NAME, release, meter_provider)
    numbers = Numbers(cache)
    for name, definition in DEFINITIONS.items():
        if name == 'up':
            continue  # the numbers are those of the process, whether Redis answers or not
        kind = 'gauge' if definition.kind is Kind.GAUGE else 'counter'
        make: Callable[..., object] = getattr(meter, f'create_observable_{kind}')
        unit = {'put.bytes': 'By', 'size.bytes': 'By'}.get(name, '1')
        unit = 's' if definition.kind is Kind.TIME else unit
        callback = numbers.callback(name, api.metrics.Observation)
        make(f'cache.{name}', callbacks=[callback], unit=unit, description=definition.text)
        if definition.kind is Kind.TIME:
            callback = numbers.callback(name, api.metrics.Observation, is_count=True)
            make(f'cache.{name}.count', callbacks=[callback], description=definition.text)


class Spans:
    """Makes spans; see :class:`~onegov_ormcache.core.story.Tracer`. Made for one cache.

    :param tracer: makes them for OpenTelemetry.
    """

    def __init__(self, tracer: OpenTelemetryTracer) -> None:
        self._tracer = tracer

    @contextmanager
    def span(self, name: str, attributes: Mapping[str, Attribute]) -> Iterator[None]:
        """Trace a block; an error is told by its type alone, because its text may have values."""
        trace = _api().trace
        with self._tracer.start_as_current_span(
            name, attributes=attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except BaseException as error:
                kind = type(error)
                span.set_attribute('error.type', f'{kind.__module__}.{kind.__qualname__}')
                span.set_status(trace.Status(trace.StatusCode.ERROR))
                raise

    def event(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Add an event to the current span."""
        _api().trace.get_current_span().add_event(name, attributes)


class Numbers:
    """The numbers of a process, as its instruments observe them. Made for one cache, which it does
    not keep alive."""

    def __init__(self, cache: OrmCache) -> None:
        self._cache = ref(cache)
        self._manager = cache.settings.namespace
        self._looked = -MEMORY
        self._found: Sequence[Measure] = ()

    def callback(
        self, name: str, observation: Any, is_count: bool = False
    ) -> Callable[[object], list[Any]]:
        """Return what an instrument calls.

        :param observation: OpenTelemetry's class.
        :param is_count: observe how many there were, instead of their time.
        """
        is_time = DEFINITIONS[name].kind is Kind.TIME and not is_count

        def observe(options: object) -> list[Any]:
            return [
                observation(
                    each.seconds if is_time else each.number,
                    {'cache.manager': self._manager, **each.labels},
                )
                for each in self._measures()
                if each.name == name
            ]

        return observe

    def _measures(self) -> Sequence[Measure]:
        """Return the numbers; all instruments that are observed together get the same."""
        cache, now = self._cache(), time.monotonic()
        if cache is None:
            return ()
        if now - self._looked > MEMORY:
            self._found = [*of_process(cache), *of_tenant(cache.statistics.own())]
            self._looked = now
        return self._found


def _api() -> Any:
    """Return OpenTelemetry's API.

    :raises MissingExtraError: if it is not installed.
    """
    try:
        import opentelemetry.metrics
        import opentelemetry.trace
    except ImportError as error:
        raise MissingExtraError(
            'traces need opentelemetry-api: '
            'python -m pip install "onegov_ormcache[opentelemetry]"'
        ) from error
    return opentelemetry
