"""The command ``stats``: what was counted, once or again and again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from functools import partial
from math import isnan
from time import sleep

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..errors import StoreUnreachable
from ..statistics.results import PropertyStatistics, TenantStatistics
from .cli_site import json_option, open_site, site_options, tenant_option
from .inspection.sites import NothingThere, Site, chosen
from .secrets import printable, without_secrets
from .showing import (
    Screen,
    as_json,
    endings,
    number,
    percent,
    reasons,
    seconds,
    short,
    size,
    table,
)


@click.command()
@site_options
@tenant_option(several=True)
@click.option('--watch', is_flag=True, help='Show it again and again, until Ctrl-C.')
@click.option(
    '--interval', type=click.FloatRange(0.1, 3600), default=2.0, show_default=True,
    help='With --watch: seconds between two looks.',
)  # fmt: skip
@json_option
def stats(
    app: str | None,
    redis_url: str | None,
    namespace: str | None,
    tenant: tuple[str, ...],
    watch: bool,
    interval: float,
    as_json: bool,
) -> int:
    """Show what was counted.

    Shows hits by tier, runs of creators, and why values were not stored. The numbers
    are those of all processes, and lag behind by some seconds.
    """
    if watch and as_json:
        raise click.UsageError('--json prints once: leave out --watch.')
    if isnan(interval):  # which is in no range, and click lets it pass
        raise click.UsageError('--interval is no number.')
    screen = Screen()
    with open_site(app, redis_url, namespace) as site:
        if watch:
            _watch(screen, site, tenant, interval)
            return 0
        found = counted(site, tenant)
    if as_json:
        screen.json({'namespace': site.namespace, 'tenants': [_json(each) for each in found]})
        return 0
    for part in _tables(found):
        screen.show(part)
    if not found:
        screen.say(_nothing(site))
    return 0


def counted(site: Site, named: Collection[str]) -> list[TenantStatistics]:
    """Return what was counted of the tenants that are named; of all if none is.

    :raises NothingThere: if nothing is known of one of them.
    :raises StoreUnreachable: if Redis can't be reached.
    """
    known = site.statistics.tenants()
    for name in named:
        if name not in known:
            chosen(name, {*known, *site.tenants()}, 'tenant', _nothing(site))
    return [site.statistics.of(name) for name in dict.fromkeys(named or known)]


def _nothing(site: Site) -> str:
    """Return what is said if no process has sent any numbers."""
    return (
        f'Nothing was counted in the namespace {site.namespace} within a week. A process that '
        'reads properties tells of it after the seconds of its setting statistics_interval.'
    )


def _watch(screen: Screen, site: Site, named: Collection[str], interval: float) -> None:
    """Show the numbers until Ctrl-C. While Redis is away or has none, that is shown instead."""
    counted(site, named)  # a wrong address or tenant is an error at once
    with ExitStack() as stack:
        show = screen.console.print
        if screen.console.is_terminal:
            live = stack.enter_context(Live(console=screen.console, auto_refresh=False))
            show = partial(live.update, refresh=True)
        try:
            while True:
                show(_state(site, named))
                sleep(interval)
        except KeyboardInterrupt:
            pass  # the only way to end it


def _state(site: Site, named: Collection[str]) -> Group | Text:
    """Return the tables, or why they can't be made now."""
    try:
        return Group(*_tables(counted(site, named)))
    except (StoreUnreachable, NothingThere) as error:  # a Redis that starts again may be empty
        return Text(printable(without_secrets(str(error))), 'red')


def _tables(found: Collection[TenantStatistics]) -> Iterator[Table]:
    for each in found:
        names = endings(each.properties)
        yield table(
            f'{each.tenant}: {number(each.commits, "commit")}, '
            f'{number(each.changed_tags, "changed tag")}',
            (
                'Property', '>Reads', '>Hits', '>Request', '>Process', '>Shared', '>Runs',
                '>Run', '>Value', 'Not stored, not used',
            ),
            [
                _row(names[where], numbers)
                for where, numbers in sorted(
                    each.properties.items(), key=lambda item: -item[1].run_seconds
                )
            ],
        )  # fmt: skip


def _row(where: str, numbers: PropertyStatistics) -> tuple[str | Text, ...]:
    rate = numbers.hit_rate
    colour = 'green' if rate and rate > 0.9 else 'yellow' if rate else 'red'
    run = numbers.run_seconds / numbers.runs if numbers.runs else None
    value = numbers.stored_bytes // numbers.stored if numbers.stored else None
    failed = [f'failed ({numbers.failed_runs})'] if numbers.failed_runs else []
    # 'doubt' and others are reasons for both
    passed_by = [f'not used: {each}' for each in reasons(numbers.bypasses)]
    return (
        where, str(numbers.gets), Text(percent(rate), colour),
        str(numbers.request_hits), str(numbers.process_hits), str(numbers.shared_hits),
        str(numbers.runs), seconds(run), size(value),
        short([*failed, *reasons(numbers.refused), *passed_by]),
    )  # fmt: skip


def _json(tenant: TenantStatistics) -> object:
    properties = {
        where: {
            **as_json(numbers), 'hits': numbers.hits, 'gets': numbers.gets,
            'hit_rate': numbers.hit_rate,
        }
        for where, numbers in tenant.properties.items()
    }  # fmt: skip
    return {**as_json(tenant), 'properties': properties}
