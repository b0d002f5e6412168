"""The commands ``tags``, ``values`` and ``outbox``, which show what is there."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.text import Text

from .cli_site import (
    DSN,
    app_option,
    chosen_tenants,
    json_option,
    namespace_option,
    on_the_side,
    only_tenant,
    open_application,
    open_site,
    site_options,
    tenant_option,
)
from .inspection.outboxes import OutboxFacts, outboxes_at, outboxes_of
from .inspection.sites import NothingThere, Site
from .inspection.tags import TenantTags, tags_of
from .inspection.values import MOST_VALUES, TenantValues, ValueFacts, decoded, values_of
from .secrets import printable
from .showing import (
    UNKNOWN,
    Screen,
    ago,
    endings,
    fields,
    number,
    seconds,
    short,
    size,
    table,
    telling,
)


@click.command()
@site_options
@tenant_option(several=True)
@json_option
def tags(
    app: str | None,
    redis_url: str | None,
    namespace: str | None,
    tenant: tuple[str, ...],
    as_json: bool,
) -> int:
    """Show the tags of tenants, and their last changes.

    Shows versions, doubts and changes. Without --tenant, a line for each tenant.
    """
    screen = Screen()
    with open_site(app, redis_url, namespace) as site:
        found = {name: tags_of(site, name) for name in chosen_tenants(site, tenant)}
    if as_json:
        screen.json({'tenants': found})
    elif tenant:
        for name, each in found.items():
            _show_tags(screen, name, each)
    else:
        screen.show(table(
            f'Tenants of {site.namespace}',
            ('Tenant', '>Tags', '>In doubt', 'Quarantine', 'Last change'),
            [_summary(name, each) for name, each in found.items()],
        ))  # fmt: skip
    return 0


def _summary(name: str, found: TenantTags | None) -> Sequence[str]:
    if found is None:
        return name, '0', '0', UNKNOWN, 'no versions: the next request begins anew'
    last = max((tag.last_change for tag in found.tags if tag.last_change), default=None)
    in_doubt = sum(tag.is_in_doubt for tag in found.tags)
    return name, str(len(found.tags)), str(in_doubt), _quarantine(found), ago(last)


def _quarantine(found: TenantTags) -> str:
    if found.quarantine is None:
        return 'no'
    waiting = ', '.join(found.quarantine)
    return f'waits for {waiting}' if waiting else 'yes'


def _show_tags(screen: Screen, name: str, found: TenantTags | None) -> None:
    if found is None:
        screen.say(f'{name}: no versions; the next request begins anew')
        return
    screen.show(fields(name, [
        ('birth', found.birth), ('epoch', found.epoch), ('quarantine', _quarantine(found)),
    ]))  # fmt: skip
    screen.show(table('', ('Tag', 'Version', 'In doubt', '>Changes', 'Last change'), [
        (
            tag.name, 'as at the birth' if tag.version == found.birth else tag.version,
            Text('yes', 'yellow') if tag.is_in_doubt else '',
            str(tag.changes), ago(tag.last_change),
        )
        for tag in found.tags
    ]))  # fmt: skip
    for doubt in found.doubts:
        age = f' for {seconds(doubt.age)}' if doubt.age is not None else ''
        screen.say(f'in doubt{age}: {", ".join(doubt.tags)}')


@click.command()
@site_options
@tenant_option(several=False)
@click.option('--property', 'name', metavar='NAME', help='Those of one property; needs --app.')
@click.option(
    '--decode', metavar='KEY',
    help='Show this value. The end of its key will do, if no other key has it.',
)  # fmt: skip
@click.option(
    '--limit', type=click.IntRange(1, 100_000), default=MOST_VALUES, show_default=True,
    help='Look at so many values.',
)  # fmt: skip
@json_option
def values(
    app: str | None,
    redis_url: str | None,
    namespace: str | None,
    tenant: str | None,
    name: str | None,
    decode: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """Show what is cached of a tenant.

    Shows the values in the shared tier. A value is valid if its stamp has the present versions of
    all its tags.
    """
    screen = Screen()
    with open_site(app, redis_url, namespace) as site:
        prop = None
        if name is not None:
            _require_application(site)
            prop = site.find_property(name)
        of = only_tenant(site, tenant)
        if decode is not None:
            value = decoded(site, of, _key(site, of, decode, limit))
        else:
            found = values_of(site, of, prop, limit)
    if decode is not None and as_json:
        screen.json(value)
    elif decode is not None:
        screen.lines(value.text + ('\n... (the rest is not shown)' if value.is_cut else ''))
    elif as_json:
        screen.json({**vars(found), 'values': [_as_json(each) for each in found.values]})
    else:
        _show_values(screen, found)
    return 0


def _require_application(site: Site) -> None:
    if site.cache is None:
        raise click.UsageError(
            'Properties are known with an application alone: give --app.',
            click.get_current_context(),
        )


def _key(site: Site, tenant: str, text: str, limit: int) -> str:
    """Return the key that a text is the whole or the end of; the text itself if there is none, or
    if there are several."""
    keys = [each.key for each in site.values.listing(tenant, limit).entries]
    if text in keys:
        return text
    ending = [key for key in keys if key.endswith(text)]
    if len(ending) > 1:
        raise NothingThere(f'{len(ending)} keys end with {text!r}, as {short(ending, 3)}: which?')
    return ending[0] if ending else text


def _as_json(value: ValueFacts) -> dict[str, object]:
    return {**vars(value), 'is_valid': value.is_valid}


def _show_values(screen: Screen, found: TenantValues) -> None:
    names = endings(each.where or each.key for each in found.values)
    screen.show(table(
        f'Values of {found.tenant}',
        ('Property', 'Arguments, variant', '>Size', 'Age', 'Ends in', 'Valid', 'Tags'),
        [
            (
                names[each.where or each.key], each.variant, size(each.size), seconds(each.age),
                seconds(each.left), _validity(each), ', '.join(telling(each.tags)),
            )
            for each in found.values
        ],
    ))  # fmt: skip
    valid = sum(each.is_valid for each in found.values)
    total = sum(each.size for each in found.values)
    screen.say(f'{number(len(found.values), "value")}, {valid} valid, {size(total)}')
    if found.is_cut:
        screen.say('There are more: see --limit.')
    if found.unreadable:
        screen.say(
            f'{number(found.unreadable, "key")} can not be read: damaged, or of another release '
            'of the package.'
        )


def _validity(value: ValueFacts) -> Text:
    if value.changed:
        return Text(printable('no, changed: ' + short(value.changed, 3)), 'dim')
    if value.in_doubt:
        return Text(printable('in doubt: ' + short(value.in_doubt, 3)), 'yellow')
    return Text('yes', 'green')


@click.command()
@app_option
@click.option(
    '--dsn', metavar='URL', envvar=DSN, show_envvar=True,
    help='PostgreSQL, without an application.',
)  # fmt: skip
@namespace_option
@json_option
def outbox(app: str | None, dsn: str | None, namespace: str | None, as_json: bool) -> int:
    """Show what lies in the outboxes.

    Commits leave there what they have changed, while Redis is away. Exit code 1 if an outbox can't
    be read.
    """
    screen, context = Screen(), click.get_current_context()
    from_line = click.core.ParameterSource.COMMANDLINE
    is_named = context.get_parameter_source('dsn') is from_line
    if is_named and context.get_parameter_source('app') is from_line:
        raise click.UsageError('Give --app or --dsn, and not both.', context)
    if dsn and (is_named or not app):
        with on_the_side():
            found = outboxes_at(dsn, namespace)
    elif app:
        with open_application(app, shared=True) as application:
            found = outboxes_of(application.cache)
    else:
        raise click.UsageError('Name the application by --app, or its database by --dsn.', context)
    if as_json:
        screen.json({'outboxes': found})
    elif not found:
        screen.say('The outboxes are empty.')
    else:
        screen.show(table(
            'Outboxes', ('Tenant', 'Namespace', '>Commits', 'Oldest', 'Changed'),
            [_outbox(each) for each in found],
        ))  # fmt: skip
    return 1 if any(each.problem for each in found) else 0


def _outbox(each: OutboxFacts) -> Sequence[str | Text]:
    if each.problem:
        return each.tenant, '', '', '', Text(printable(f'can not be read: {each.problem}'), 'red')
    told = 'everything (it can not be read)' if each.tags is None else short(each.tags)
    return each.tenant, each.namespace, str(each.messages), seconds(each.age), told
