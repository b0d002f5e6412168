"""The commands ``explain`` and ``check``, which need an application."""

from __future__ import annotations

import click
from rich.text import Text

from ..errors import OrmCacheError
from .cli_site import app_option, json_option, open_application, tenant_option
from .inspection.checks import audited
from .inspection.checks import check as check_site
from .inspection.explaining import Explanation, InTenant
from .inspection.explaining import explain as explain_property
from .inspection.findings import Finding, Severity, error
from .inspection.sites import NothingThere, Site, chosen
from .loading import NoApplication
from .secrets import without_secrets
from .showing import (
    UNKNOWN,
    Screen,
    ago,
    fields,
    number,
    percent,
    reasons,
    seconds,
    short,
    size,
    table,
    telling,
)

#: Exit code of ``check`` if it has found errors or warnings.
FOUND = 1

#: The most tenants in which a property is explained, unless they are named.
MOST_TENANTS = 10

COLOURS = {Severity.ERROR: 'red', Severity.WARNING: 'yellow', Severity.NOTE: 'dim'}


@click.command()
@app_option
@tenant_option(several=True)
@json_option
@click.argument('name', metavar='PROPERTY')
def explain(app: str | None, tenant: tuple[str, ...], as_json: bool, name: str) -> int:
    """Explain what a property does.

    Tells what evicts it and what did so last, how its last run went, and why it is not stored.
    PROPERTY is its name, or as much of module.Class.name as tells it from others.
    """
    screen = Screen()
    with open_application(app, shared=True) as application:
        site = Site.of(application.cache)
        prop = site.find_property(name)
        for chosen_one in tenant:
            site.require_tenant(chosen_one)
        known = tenant or _counted_in(site, prop.where)
        found = explain_property(site, prop, known)
    if as_json:
        screen.json(found)
        return 0
    screen.say(found.where)
    screen.show(fields('', _declared(found)))
    for each in found.tenants:
        screen.say('')
        screen.say(f'in {each.tenant}')
        screen.show(fields('', _in_tenant(each)))
    if not found.tenants:
        screen.say('Nothing was counted of it.')
    return 0


def _counted_in(site: Site, where: str) -> list[str]:
    """Return the first tenants in which a property was counted."""
    found: list[str] = []
    for tenant in site.statistics.tenants():
        if len(found) == MOST_TENANTS:
            break
        if where in site.statistics.of(tenant).properties:
            found.append(tenant)
    return found


def _declared(found: Explanation) -> list[tuple[str, str]]:
    return [
        ('declared at', found.location),
        ('policy', found.policy),
        ('meaning', found.meaning),
        ('tags', ', '.join(found.tags) or UNKNOWN),
        ('differs by', ', '.join(found.differs_by) or 'nothing but the tenant'),
        ('ends by itself', found.expires or 'no'),
    ]


def _in_tenant(found: InTenant) -> list[tuple[str, str]]:
    numbers, run = found.counted, found.counted.last_run
    by_tier = (
        f'request {numbers.request_hits}, process {numbers.process_hits}, shared '
        f'{numbers.shared_hits}'
    )
    rows = [
        ('cached', f'{number(found.values, "value")}, {found.valid} valid, {size(found.size)}'),
        ('reads', f'{numbers.gets}, {percent(numbers.hit_rate)} hits ({by_tier})'),
        ('runs', f'{numbers.runs}, {seconds(numbers.run_seconds)} in all'),
        ('last run', 'none is known'),
        ('last evicted', 'no change is known that concerned it'),
    ]
    if run is not None:
        stored = f'not stored: {run.why_not_stored}' if run.why_not_stored else 'stored'
        rows[3] = (
            'last run', f'{ago(run.at)}, {seconds(run.seconds)}, {size(run.size)}, {stored}'
        )  # fmt: skip
        rows.append(('its tags', short(telling(run.tags), 20) or UNKNOWN))
    if found.evicted is not None:
        how = ', told from outside' if found.evicted.is_outside else ''
        rows[4] = 'last evicted', f'{ago(found.evicted.at)}, by {short(found.evicted.tags)}{how}'
    for name, counts in ('not stored', numbers.refused), ('passed by', numbers.bypasses):
        if counts:
            rows.append((name, short(reasons(counts))))
    if numbers.checks:
        bound = percent(numbers.disagreement_bound)
        wrong = f'{numbers.disagreements} not what the database gives (below {bound} of all)'
        rows.append(('audited', f'{number(numbers.checks, "hit")}, {wrong}'))
    if numbers.failed_runs:
        rows.append(('failed', f'{number(numbers.failed_runs, "run")} raised an error'))
    if found.in_doubt:
        rows.append(('in doubt', short(found.in_doubt)))
    return rows


@click.command()
@app_option
@click.option(
    '--run', 'tenant', metavar='TENANT',
    help='Also run the creators of the app in this tenant, and roll back: what the audit finds.',
)  # fmt: skip
@json_option
def check(app: str | None, tenant: str | None, as_json: bool) -> int:
    """Check an application, its servers and clocks.

    Checks configuration, policies, what was counted of properties, Redis, database, clocks and
    outboxes. Exit code 1 if there are errors or warnings; notes do not count.
    """
    screen, name = Screen(), 'the application'
    try:
        with open_application(app, shared=False) as application:
            name = type(application.instance).__qualname__
            site = Site.of(application.cache)
            if tenant is not None:
                tenants = application.cache.observer.list_schemas()
                chosen(tenant, tenants, 'tenant', 'the database has no tenants')
            found = check_site(site)
            if tenant is not None:
                found += audited(site, tenant, application.instance)
    except (NoApplication, NothingThere):
        raise
    except OrmCacheError as failure:
        found = [error('configuration', str(failure))]
    found = [
        Finding(each.severity, each.subject, without_secrets(each.text)) for each in found
    ]  # fmt: skip
    counts = {kind: sum(each.severity is kind for each in found) for kind in Severity}
    if as_json:
        screen.json({'findings': found})
    else:
        if found:
            screen.show(table(f'Check of {name}', ('', 'About', 'Finding'), [
                (Text(each.severity.value, COLOURS[each.severity]), each.subject, each.text)
                for each in sorted(found, key=lambda each: list(Severity).index(each.severity))
            ]))  # fmt: skip
        screen.say(', '.join(number(each, kind.value) for kind, each in counts.items()))
    return FOUND if counts[Severity.ERROR] or counts[Severity.WARNING] else 0
