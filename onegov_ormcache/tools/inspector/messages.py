"""Pages that say why there is no other: no permission, nothing there, a store that is away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from morepath.core import standard_exception_view
from webob.exc import HTTPBadRequest, HTTPError, HTTPForbidden

from ...errors import StoreUnreachable
from .app import Inspector, as_host
from .forms import ForgedForm
from .rendering import render
from .serving import MEANWHILE

log = logging.getLogger(__name__)

#: What other pages say, by status.
SENTENCES = {
    400: ('The address is wrong', 'Follow the links of the pages.'),
    403: ('You may not see this', 'Log in as somebody to whom the application grants it.'),
    404: ('There is no such page', 'Maybe the tenant or the property has another name.'),
    503: ('This can not be shown now', 'Reload this page to try again.'),
    405: ('This is not how it goes', 'The address takes forms alone, or none.'),
}


def message(
    request: Any,
    status: int,
    heading: str,
    sentences: Sequence[str],
    back: str = '',
) -> Any:
    """Return a page of a few sentences.

    :param back: an address that leads on; '' for none.
    """
    return render(
        request, 'message', status, heading=heading, sentences=sentences, back=back
    )


def database_away(request: Any, error: Exception) -> Any:
    """Return the page that says that the database is away."""
    log.info('The inspector has nothing to show: %s', error)
    return message(
        request, 503, 'The database can not be reached',
        ['It must say first whether there is such a tenant. Reload this page to try again.'],
    )  # fmt: skip


def store_away(request: Any, error: StoreUnreachable) -> Any:
    """Return the page that says that the store is away."""
    log.info('The inspector has nothing to show: %s', error)
    policy = str(request.app.inspected.settings.on_outage)
    return message(
        request, 503, 'Redis can not be reached',
        ['There are no figures, and nothing can be evicted, until it is back.',
         MEANWHILE.get(policy, ''),
         'Reload this page to try again.'],
    )  # fmt: skip


@Inspector.view(model=HTTPError)
def failed(self: HTTPError, request: Any) -> Any:
    """An error without a page of its own."""
    heading, sentence = SENTENCES.get(self.code, (str(self.title), ''))
    own = str(self.detail or '')
    return message(request, self.code, heading, [each for each in (own or sentence,) if each])


@Inspector.view(model=HTTPForbidden)
def forbidden(self: HTTPForbidden, request: Any) -> Any:
    """No permission: what the application says then, maybe a way to log in; else a page."""
    with as_host(request) as host:
        view: Any = host.get_view.by_predicates(model=type(self)).component
        if view is not None and view.func is not standard_exception_view:
            return view(host, self, request)
    return failed(self, request)


@Inspector.view(model=ForgedForm)
def forged(self: ForgedForm, request: Any) -> Any:
    """A form from elsewhere, or one that is too old."""
    return message(
        request, 403, 'Nothing was changed',
        [str(self.detail), 'Open the page again, and send the form from there.'],
    )  # fmt: skip


@Inspector.view(model=UnicodeDecodeError)
def undecodable(self: UnicodeDecodeError, request: Any) -> Any:
    """An address whose query is no UTF-8."""
    log.info('%s: %s', request.path_qs, self)
    return failed(HTTPBadRequest(), request)
