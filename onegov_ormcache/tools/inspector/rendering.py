"""How a page is written: the templates, their filters, and the headers that go with it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from importlib.resources import files
from typing import Any

import jinja2
import morepath
from markupsafe import Markup

from .forms import FIELD, secret_of, token, user_of
from .models import Front, Servers, Stylesheet
from .readings import tag_text

#: Nothing but our style sheet is loaded, nothing runs, no other site shows us in a frame, and
#: forms lead nowhere else.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; "
    "base-uri 'none'"
)

HEADERS: Mapping[str, str] = {
    'Content-Security-Policy': CONTENT_SECURITY_POLICY,
    'Cache-Control': 'no-store',
    'X-Content-Type-Options': 'nosniff',
    # not no-referrer: browsers would send `Origin: null` with our forms, see `forms`
    'Referrer-Policy': 'same-origin',
    'Cross-Origin-Resource-Policy': 'same-origin',
}

#: Seconds for which a browser may keep the style sheet.
STYLE_LIFETIME = 3600

#: Thousands, and the letters that stand for them.
SIZES = ('B', 'kB', 'MB', 'GB', 'TB')

ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader(__name__.rpartition('.')[0]),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(request: Any, template: str, status: int = 200, **values: Any) -> morepath.Response:
    """Return a page.

    :param template: the name of its template, without the end.
    """
    text = ENVIRONMENT.get_template(f'{template}.jinja2').render(
        link=partial(link, request),
        front=Front(),
        servers=Servers(),
        stylesheet=Stylesheet(),
        now=time.time(),
        **values,
    )
    response = morepath.Response(text, status=status, content_type='text/html', charset='utf-8')
    return with_headers(response)


def link(request: Any, model: object, name: str = '') -> str:
    """Return where a page is, without scheme and host, which a proxy may change."""
    found: str = request.link(model, name)
    return found.removeprefix(request.host_url)


def see_other(address: str) -> morepath.Response:
    """Return a redirect to the page that follows a form, so that a reload sends nothing again."""
    response = morepath.Response(status=303, location=address)
    return with_headers(response)


def stylesheet() -> morepath.Response:
    """Return the style sheet."""
    text = files(__package__).joinpath('style.css').read_text(encoding='utf-8')
    response = morepath.Response(text, content_type='text/css', charset='utf-8')
    with_headers(response).headers['Cache-Control'] = f'private, max-age={STYLE_LIFETIME}'
    return response


def with_headers(response: morepath.Response) -> morepath.Response:
    """Give a response the headers of all our pages."""
    for name, value in HEADERS.items():
        response.headers[name] = value
    return response


class FormTokens:
    """Gives the forms of one page their tokens; made for a page with forms.

    :raises StoreUnreachable: if the secret can't be had.
    """

    def __init__(self, request: Any) -> None:
        self._secret = secret_of(request.app.inspected)
        self._user = user_of(request)

    def __call__(self, *deed: str) -> Markup:
        """Return the hidden field of the form that does this."""
        value = token(self._secret, self._user, deed)
        return Markup('<input type="hidden" name="{}" value="{}">').format(FIELD, value)


# filters: how numbers and times are written


def number(value: float) -> str:
    """Write a whole number."""
    return f'{value:,.0f}'


def percent(value: float | None) -> str:
    """Write a share; one that is not quite all is not written as all."""
    if value is None:
        return '\N{EN DASH}'
    if 0.999 <= value < 1:
        return '> 99.9 %'.replace(' ', '\N{NO-BREAK SPACE}')
    return f'{value * 100:.1f}\N{NO-BREAK SPACE}%'


def seconds(value: float | None) -> str:
    """Write a duration in the unit that fits."""
    if value is None:
        return '\N{EN DASH}'
    for least, factor, unit in ((3600, 3600, 'h'), (60, 60, 'min'), (1, 1, 's')):
        if value >= least:
            return f'{value / factor:.1f}\N{NO-BREAK SPACE}{unit}'
    return f'{value * 1000:.{0 if value >= 0.1 else 1}f}\N{NO-BREAK SPACE}ms'


def size(value: float | None) -> str:
    """Write a number of bytes in the unit that fits."""
    if value is None:
        return '\N{EN DASH}'
    at = 0
    while value >= 1000 and at < len(SIZES) - 1:
        value, at = value / 1000, at + 1
    return f'{value:.{1 if at else 0}f}\N{NO-BREAK SPACE}{SIZES[at]}'


def moment(value: float | None) -> str:
    """Write a moment as an element that machines read too, in UTC."""
    if value is None:
        return '\N{EN DASH}'
    at = datetime.fromtimestamp(value, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.strftime('%Y-%m-%dT%H:%M:%SZ'), at.strftime('%Y-%m-%d %H:%M:%S')
    )


def hour(value: float) -> str:
    """Write the hour of a moment, in UTC."""
    return datetime.fromtimestamp(value, UTC).strftime('%H:%M')


for _filter in number, percent, seconds, size, moment, hour:
    ENVIRONMENT.filters[_filter.__name__] = _filter
ENVIRONMENT.filters['tag'] = tag_text
