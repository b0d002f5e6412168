"""The options by which a command finds what it is about: an application, or a namespace on Redis.

While an application is loaded and used, whatever it prints goes to the standard error. The
standard output is the command's alone.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any, TypeVar

import click

from ..core.settings import OrmCacheSettings
from .inspection.sites import NothingThere, Site
from .loading import Loaded, loaded

C = TypeVar('C', bound=Callable[..., Any])

#: The environment variables that stand for options. A password in an option is seen by all users
#: of the machine.
APP, REDIS, DSN = 'ONEGOV_ORMCACHE_APP', 'ONEGOV_ORMCACHE_REDIS_URL', 'ONEGOV_ORMCACHE_DSN'

app_option = click.option(
    '--app', 'app', metavar='MODULE:ATTRIBUTE', envvar=APP, show_envvar=True,
    help='The application: its class, an instance, a WSGI application, or an OrmCache.',
)  # fmt: skip

redis_option = click.option(
    '--redis-url', metavar='URL', envvar=REDIS, show_envvar=True,
    help='Redis, without an application.',
)  # fmt: skip

namespace_option = click.option(
    '--namespace', metavar='NAME',
    help=f'With --redis-url: the setting of the application ({OrmCacheSettings.namespace}).',
)  # fmt: skip

json_option = click.option('--json', 'as_json', is_flag=True, help='Print JSON.')


def site_options(command: C) -> C:
    """Add the options by which a command finds a site."""
    for option in namespace_option, redis_option, app_option:
        command = option(command)
    return command


def tenant_option(*, several: bool) -> Callable[[C], C]:
    """Return the option that names a tenant, or several."""
    more = '; may be repeated' if several else ''
    return click.option('--tenant', metavar='NAME', multiple=several, help=f'A tenant{more}.')


@contextmanager
def open_site(
    app: str | None, redis_url: str | None, namespace: str | None
) -> Iterator[Site]:
    """Find the site that the options name, for the time of a ``with`` block.

    :raises UsageError: if they name none, or two.
    :raises OrmCacheError: if the application can't be loaded, or the address is wrong.
    """
    context = click.get_current_context()
    explicit = {
        name for name in ('app', 'redis_url', 'namespace')
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }  # fmt: skip
    if {'app', 'redis_url'} <= explicit:
        raise click.UsageError('Give --app or --redis-url, and not both.', context)
    if 'namespace' in explicit and 'app' in explicit:
        raise click.UsageError('An application of --app has its own namespace.', context)
    with ExitStack() as stack:
        stack.enter_context(on_the_side())
        if redis_url and ('app' not in explicit) and (not app or explicit):
            site = Site.at(redis_url, namespace or OrmCacheSettings.namespace)
            stack.callback(site.close)
        elif app:
            site = Site.of(stack.enter_context(loaded(app, shared=True)).cache)
        else:
            raise click.UsageError(f'Name the application by --app or {APP}, or Redis by '
                                   f'--redis-url or {REDIS}.', context)  # fmt: skip
        yield site


@contextmanager
def open_application(app: str | None, *, shared: bool) -> Iterator[Loaded]:
    """Load the application that the option names, for the time of a ``with`` block.

    :param shared: see :func:`~.loading.loaded`.
    :raises UsageError: if it names none.
    :raises OrmCacheError: if it can't be loaded.
    """
    if not app:
        raise click.UsageError(
            f'Name the application by --app or {APP}.', click.get_current_context()
        )
    with on_the_side(), loaded(app, shared=shared) as found:
        yield found


@contextmanager
def on_the_side() -> Iterator[None]:
    """Keep the standard output free, and let errors alone tell what goes wrong."""
    log = logging.getLogger('onegov_ormcache')
    handler = logging.NullHandler()
    log.addHandler(handler)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        log.removeHandler(handler)


def chosen_tenants(site: Site, named: Sequence[str]) -> list[str]:
    """Return the tenants that are named, each once; all that are known if none is.

    :raises NothingThere: if nothing is known of one of them, or of any tenant.
    """
    for tenant in named:
        site.require_tenant(tenant)
    found = list(dict.fromkeys(named)) or site.tenants()
    return found or [site.require_tenant('')]


def only_tenant(site: Site, named: str | None) -> str:
    """Return the tenant that is named; if none is, the only one that there is.

    :raises NothingThere: if there are several, or none of this name.
    """
    if named is not None:
        return site.require_tenant(named)
    tenants = site.tenants()
    if len(tenants) == 1:
        return tenants[0]
    if not tenants:
        return site.require_tenant('')
    raise NothingThere(
        f'there are {len(tenants)} tenants ({", ".join(tenants[:10])}'
        f'{", ..." if len(tenants) > 10 else ""}): name one by --tenant'
    )
