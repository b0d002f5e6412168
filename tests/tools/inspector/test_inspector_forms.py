"""The forms of the inspector: what they evict, and that no other site can send them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onegov_ormcache.tools.inspector import forms
from tests.support.applications import Applications
from tests.support.site_with_inspector import CACHE, WHERE, Granting, Visitor


def runs_of(site: Granting, tenant: str, name: str) -> int:
    """Return how often the creator of a property has run for a tenant."""
    counted = site.orm_cache.statistics.of(tenant).properties.get(f'{WHERE}.{name}')
    return counted.runs if counted else 0


def test_property_is_evicted_for_one_tenant(site: Granting, tenant: str, other: str) -> None:
    """The button evicts the values of the tenant that was looked at, and no other's."""
    for name in tenant, other:
        Visitor(site, name).client.get('/read')
    visitor = Visitor(site, other, 'operator')
    page = visitor.evict(visitor.property('users', tenant))
    assert 'Evicted.' in page.html.find(role='status').text
    assert 'by hand' in page.html.find(id='evictions').find_parent('table').text
    for name in tenant, other:
        Visitor(site, name).client.get('/read')
    assert runs_of(site, tenant, 'users') == 2
    assert runs_of(site, other, 'users') == 1
    assert runs_of(site, tenant, 'user_name') == 1


def test_values_of_all_arguments_are_evicted(site: Granting, tenant: str) -> None:
    """The button of a property that takes arguments evicts all its values."""
    Visitor(site, tenant).client.get('/read')
    visitor = Visitor(site, tenant, 'admin')
    visitor.evict(visitor.property('user_name'))
    Visitor(site, tenant).client.get('/read')
    assert runs_of(site, tenant, 'user_name') == 2
    assert runs_of(site, tenant, 'users') == 1


def test_everything_of_a_tenant_is_evicted(site: Granting, tenant: str, other: str) -> None:
    """The button evicts all values and pages of one tenant, if the box beside it is ticked."""
    for name in tenant, other:
        Visitor(site, name).client.get('/read')
        Visitor(site, name).client.get('/')
    visitor = Visitor(site, tenant, 'admin')
    page = visitor.of(tenant)
    assert 'Nothing was evicted' in visitor.send(page, '/evict')
    visitor.evict(page, sure='yes')
    for name in tenant, other:
        Visitor(site, name).client.get('/read')
    assert runs_of(site, tenant, 'users') == runs_of(site, tenant, 'user_name') == 2
    assert runs_of(site, other, 'users') == runs_of(site, other, 'user_name') == 1
    fresh = Visitor(site, tenant).client.get('/')
    assert 'hit' not in fresh.headers.get('Cache-Status', '').split(';')[1:2]


def test_refreshed_value_is_there_for_the_next_request(site: Granting, tenant: str) -> None:
    """The value is computed when the button is pressed, and not when the next visitor comes."""
    Visitor(site, tenant).client.get('/read')
    visitor = Visitor(site, tenant, 'admin')
    page = visitor.send(visitor.property('users'), '/refresh').follow()
    assert 'computed anew' in page.html.find(role='status').text
    assert runs_of(site, tenant, 'users') == 2
    Visitor(site, tenant).client.get('/read')
    assert runs_of(site, tenant, 'users') == 2


@pytest.mark.parametrize(
    ('name', 'why'), [('user_name', 'takes arguments'), ('varying', 'role or variant')]
)
def test_what_has_many_values_is_not_refreshed(
    site: Granting, tenant: str, name: str, why: str
) -> None:
    """There is no button to compute a property with several values; a form that says so fails."""
    visitor = Visitor(site, tenant, 'admin')
    page = visitor.property(name)
    assert [form.action.partition('?')[0][-6:] for form in page.forms.values()] == ['/evict']
    assert why in page
    fields = {'token': token(site, 'refresh', tenant, f'{WHERE}.{name}')}
    path = f'{CACHE}/tenants/{tenant}/property/refresh?name={WHERE}.{name}'
    assert why in visitor.client.post(path, fields, status=400)


def test_creator_that_fails_is_a_page_that_says_so(site: Granting, tenant: str) -> None:
    """The page names the error, and keeps its message, which may be somebody's secret."""
    visitor = Visitor(site, tenant, 'admin')
    page = visitor.send(visitor.property('failing'), '/refresh')
    assert page.status_code == 500
    assert 'ZeroDivisionError' in page
    assert 'secret' not in page


# forged forms


def token(site: Granting, *deed: str, user: str = 'the-admin', until: int | None = None) -> str:
    """Return the token of a form, signed with the site's own secret."""
    return forms.token(forms.secret_of(site.orm_cache), user, deed, until)


@pytest.mark.parametrize(
    'headers',
    [
        {'Sec-Fetch-Site': 'cross-site'},
        {'Sec-Fetch-Site': 'same-site'},  # the host of another tenant
        {'Origin': 'https://evil.example'},
        {'Origin': 'null'},
        {'Origin': 'http://['},
        {'Sec-Fetch-Site': 'cross-site', 'Origin': 'http://{host}'},
    ],
    ids=str,
)
def test_form_from_elsewhere_changes_nothing(
    site: Granting, tenant: str, headers: dict[str, str]
) -> None:
    """What the browser says of the sender counts, even if the token is right."""
    Visitor(site, tenant).client.get('/read')
    visitor = Visitor(site, tenant, 'admin')
    sent = {name: value.format(host=f'{tenant}.localhost') for name, value in headers.items()}
    (form,) = (form for form in visitor.property('users').forms.values() if 'evict' in form.action)
    page = form.submit(headers=sent, status=403)
    assert 'Nothing was changed' in page
    assert 'another site' in page
    Visitor(site, tenant).client.get('/read')
    assert runs_of(site, tenant, 'users') == 1


@pytest.mark.parametrize(
    'headers',
    [
        {'Sec-Fetch-Site': 'same-origin', 'Origin': 'http://{host}'},
        {'Origin': 'http://{host}'},
        {'Origin': 'https://{host}'},  # a proxy ends TLS
        {},
    ],
    ids=str,
)
def test_own_form_is_taken(site: Granting, tenant: str, headers: dict[str, str]) -> None:
    """The forms of our own pages are taken, from old browsers too."""
    visitor = Visitor(site, tenant, 'admin')
    sent = {name: value.format(host=f'{tenant}.localhost') for name, value in headers.items()}
    (form,) = (form for form in visitor.property('users').forms.values() if 'evict' in form.action)
    form.submit(headers=sent, status=303)


def test_token_is_good_for_one_visitor_and_one_deed(
    site: Granting, tenant: str, other: str
) -> None:
    """A form without the token that belongs to it is refused."""
    visitor = Visitor(site, tenant, 'admin')
    name = f'{WHERE}.users'
    right = token(site, 'evict', tenant, name)
    wrong: dict[str, Any] = {
        'none': None,
        'empty': '',
        'damaged': right[:-1] + ('0' if right[-1] != '0' else '1'),
        'no signature': right.partition('.')[0],
        'no time': 'x.' + right.partition('.')[2],
        'a later time': f'{int(right.partition(".")[0]) + 1}.{right.partition(".")[2]}',
        'huge': '9' * 5000 + '.0',
        'not ASCII': '\N{ARABIC-INDIC DIGIT ONE}.\N{SNOWMAN}',
        'another visitor': token(site, 'evict', tenant, name, user='the-clerk'),
        'nobody': token(site, 'evict', tenant, name, user=''),
        'another deed': token(site, 'refresh', tenant, name),
        'another tenant': token(site, 'evict', other, name),
        'another property': token(site, 'evict', tenant, f'{WHERE}.varying'),
        'everything': token(site, 'evict', tenant),
        'too old': token(site, 'evict', tenant, name, until=int(time.time()) - 1),
        'another secret': forms.token(b'', 'the-admin', ('evict', tenant, name)),
    }
    path = f'{CACHE}/tenants/{tenant}/property/evict?name={name}'
    for case, value in wrong.items():
        fields = {} if value is None else {'token': value}
        page = visitor.client.post(path, fields, status=403)
        assert 'Nothing was changed' in page, case
    visitor.client.post(path, {'token': right}, status=303)


def test_get_changes_nothing(site: Granting, tenant: str) -> None:
    """A link can't evict."""
    Visitor(site, tenant).client.get('/read')
    visitor = Visitor(site, tenant, 'admin')
    right = token(site, 'evict', tenant, f'{WHERE}.users')
    for deed in 'evict', 'refresh':
        path = f'/property/{deed}?name={WHERE}.users&token={right}'
        assert visitor.of(tenant, path, status=405)
    Visitor(site, tenant).client.get('/read')
    assert runs_of(site, tenant, 'users') == 1


def test_all_processes_have_the_same_secret(
    applications: Applications, tenant: str, site: Granting
) -> None:
    """A form can be sent to another process than the one that has made its page."""
    elsewhere = applications.elsewhere(site)
    secret = forms.secret_of(site.orm_cache)
    assert len(secret) == 32
    assert forms.secret_of(elsewhere.orm_cache) == secret
    page = Visitor(site, tenant, 'admin').property('users')
    fields = {'token': page.forms[0]['token'].value}
    path = f'{CACHE}/tenants/{tenant}/property/evict?name={WHERE}.users'
    Visitor(elsewhere, tenant, 'admin').client.post(path, fields, status=303)


def test_redis_keeps_the_secret_for_its_applications(
    on_servers: Applications, tenant: str
) -> None:
    """Applications of another namespace have another secret."""
    own = on_servers.start(Granting)
    foreign = on_servers.start(Granting, namespace='test-another')
    assert forms.secret_of(own.orm_cache) != forms.secret_of(foreign.orm_cache)
