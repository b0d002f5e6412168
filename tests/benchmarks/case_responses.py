"""Cached responses, beside cached properties alone and no cache, with a part of writes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from . import page_load
from .context import Context
from .measuring import interleaved
from .microcache import microcached
from .pages import NODES, site_environment
from .peers import PeersMissingError, database_of
from .results import CaseResult, Column, Plot
from .serving import commands, served

#: Of each setting, the part of writes and the pages that are asked for.
SETTINGS = {
    '0% writes': (0.0, page_load.PAGES),
    '1% writes': (0.01, page_load.PAGES),
    '10% writes': (0.1, page_load.PAGES),
    '10% writes of two pages': (0.1, page_load.MOSTLY_QUIET),
}
BASE = 'properties alone'
NGINX = 'nginx, for a second'
DJANGO = {
    'Django, no cache': 'none',
    'Django, cache_page(60)': 'pages',
    'django-cachalot': 'cachalot',
}


class Contestant(NamedTuple):
    """A served site, and how its pages are asked for."""

    port: int
    written: page_load.Written
    is_conditional: bool = False


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'responses',
        'Cached responses',
        'Pages of 15 kB with 200 links, made of ten properties, behind real WSGI servers. Four '
        'threads ask for five pages, of which the n-th has 1/n of the requests of the first. A '
        'write is a post whose commit evicts all pages, and one of the ten properties of each; '
        '"of two pages": the two of the five that show the changed table. "304" is a client that '
        'sends If-None-Match with the tag of its copy; waitress ends the connection after each '
        '304. Stale are the pages, of all runs, that did not show a write which was answered '
        'before they were asked for.',
        (
            Column('rate', 'requests per second', 'rate'),
            Column('ratio', f'to {BASE}', 'ratio'),
            Column('stale', 'stale pages', 'count'),
        ),
        Plot('rate', log=False),
    )
    for server in commands(0):
        with ExitStack() as stack:
            contestants = serve(context, result, server, stack)
            for setting in SETTINGS:
                race(context, result, server, contestants, setting)
    return result


def serve(
    context: Context, result: CaseResult, server: str, stack: ExitStack
) -> dict[str, Contestant]:
    """Start the sites of all contestants, each on a schema of its own."""

    def start(mode: str, **how: str | Path) -> Contestant:
        schema = stack.enter_context(context.schema(NODES))
        environment = site_environment(
            mode, dsn=context.dsn, database=database_of(context.dsn),
            redis_url=context.redis_url, namespace=schema, schema=schema,
        )  # fmt: skip
        port = stack.enter_context(served(server, environment, **how))  # type: ignore[arg-type]
        return Contestant(port, page_load.Written())

    start_own: Callable[[str], Contestant] = partial(start, target='tests.benchmarks.pages:make')
    pages, uncached = start_own('pages'), start_own('none')
    contestants = {
        'pages cached': pages,
        'pages cached, 304': pages._replace(is_conditional=True),
        BASE: start_own('properties'),
        'no cache': uncached,
    }
    try:
        # the same site: it shows what was written without nginx, too
        port = stack.enter_context(microcached(uncached.port))
        contestants[NGINX] = uncached._replace(port=port)
    except RuntimeError as error:
        result.add(server, NGINX, note=f'left out: {error}')
    for name, mode in DJANGO.items():
        try:
            contestants[name] = start(
                mode, target='django_pages:make', python=context.peers.python,
                folder=Path(__file__).parent,
            )  # fmt: skip
        except (PeersMissingError, RuntimeError) as error:
            result.add(server, name, note=f'left out: {error}')
    return contestants


def race(
    context: Context,
    result: CaseResult,
    server: str,
    contestants: dict[str, Contestant],
    setting: str,
) -> None:
    """Measure all contestants in one setting."""
    writes, pages = SETTINGS[setting]
    stale = dict.fromkeys(contestants, 0)
    failures: dict[str, list[str]] = {name: [] for name in contestants}

    def ask(name: str) -> float:
        asked = contestants[name]
        seen = page_load.run(
            asked.port, context.sizes.page_seconds, writes, asked.written,
            conditional=asked.is_conditional, pages=pages,
        )  # fmt: skip
        stale[name] += seen.stale
        failures[name] += seen.failures
        return seen.seconds / max(1, seen.answers)

    timings = interleaved(
        {name: partial(ask, name) for name in contestants}, context.sizes.slow_rounds
    )
    for name, timing in timings.items():
        failed = failures[name]
        result.add(
            f'{server}, {setting}', name,
            rate=1 / timing.median,
            # of rates: more is better
            ratio=timings[BASE].ratio(timing),
            stale=stale[name],
            note=f'{len(failed)} failures, {failed[0]}' if failed else '',
        )  # fmt: skip
