"""The command ``evict``: evicts values by hand, after a question."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..core.properties import Property
from ..errors import OrmCacheError
from .cli_site import chosen_tenants, open_site, site_options, tenant_option
from .inspection.evicting import arguments_of, evict_property, evict_table, evict_tenant
from .inspection.sites import Site, chosen
from .secrets import printable
from .showing import Screen, short


class NotConfirmed(OrmCacheError):
    """The question whether to evict was not answered with yes."""


@click.command()
@site_options
@tenant_option(several=True)
@click.option('--all', 'all_tenants', is_flag=True, help='All tenants.')
@click.option(
    '--table', 'tables', metavar='NAME', multiple=True,
    help='What depends on this table; may be repeated.',
)  # fmt: skip
@click.option('--yes', is_flag=True, help='Do not ask.')
@click.argument('name', metavar='[PROPERTY]', required=False)
@click.argument('arguments', metavar='[ARGUMENT]...', nargs=-1)
def evict(
    app: str | None,
    redis_url: str | None,
    namespace: str | None,
    tenant: tuple[str, ...],
    all_tenants: bool,
    tables: tuple[str, ...],
    yes: bool,
    name: str | None,
    arguments: tuple[str, ...],
) -> int:
    """Evict values by hand, at once.

    Evicts all values of a PROPERTY, or the one with these ARGUMENTs; what depends on a table
    (--table); or everything. A PROPERTY needs --app.
    """
    screen, context = Screen(), click.get_current_context()
    if bool(tenant) == all_tenants:
        raise click.UsageError('Name the tenants by --tenant, or give --all.', context)
    if name is not None and tables:
        raise click.UsageError('Give a PROPERTY or --table, and not both.', context)
    with open_site(app, redis_url, namespace) as site:
        if name is not None and site.cache is None:
            raise click.UsageError('A PROPERTY is known with --app alone.', context)
        prop = None if name is None else site.find_property(name)
        given = arguments_of(prop, arguments) if prop is not None and arguments else None
        if site.cache is not None:
            for table in tables:
                chosen(table, sorted(site.cache.observer.tables), 'table', 'there are no tables')
        tenants = chosen_tenants(site, tenant)
        if not yes:
            _ask(site, prop, arguments, tables, tenants)
        for each in tenants:
            _evict(site, each, prop, given, tables)
            screen.say(f'{each}: evicted')
    return 0


def _evict(
    site: Site,
    tenant: str,
    prop: Property | None,
    given: Sequence[object] | None,
    tables: Sequence[str],
) -> None:
    if prop is not None:
        evict_property(site, tenant, prop, given)
    elif tables:
        for table in tables:
            evict_table(site, tenant, table)
    else:
        evict_tenant(site, tenant)


def _ask(
    site: Site,
    prop: Property | None,
    arguments: Sequence[str],
    tables: Sequence[str],
    tenants: Sequence[str],
) -> None:
    """Ask whether to evict.

    :raises NotConfirmed: if the answer is not yes, or there is nobody to answer.
    """
    what = 'everything'
    if prop is not None:
        what = prop.where + (f'({", ".join(arguments)})' if arguments else '')
    elif tables:
        what = f'what depends on {", ".join(tables)}'
    where = f'{len(tenants)} tenants ({short(tenants)})' if len(tenants) > 1 else tenants[0]
    question = f'Evict {what} of {where} in the namespace {site.namespace}?'
    try:
        confirmed = click.confirm(printable(question), err=True)
    except click.Abort as end:
        click.echo(err=True)
        if isinstance(end.__context__, KeyboardInterrupt):  # click does not tell it from no answer
            raise end.__context__ from None
        raise NotConfirmed(
            'nothing was evicted: answer y, or give --yes where nobody can'
        ) from None
    if not confirmed:
        raise NotConfirmed('nothing was evicted')
