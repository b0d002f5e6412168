"""What the inspector makes of wrong addresses, damaged forms and a missing extra."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.support.applications import Applications, change
from tests.support.models import User
from tests.support.servers import PostgresServer
from tests.support.site_with_inspector import Granting, Visitor


@pytest.mark.parametrize(
    'path',
    [
        '/tenants/{tenant}/property?name=%FF',
        '/tenants/{tenant}?done=%FF',
        '?find=%FF%00',
        '/tenants/{tenant}/property?name=a&name=b',
    ],
)
def test_wrong_address_is_a_page(site: Granting, tenant: str, path: str) -> None:
    """An address that is no UTF-8, or has something twice, is a page that says so."""
    page = Visitor(site, tenant, 'operator').get(path.format(tenant=tenant), status=400)
    assert 'The address is wrong' in page


def test_address_can_not_put_words_into_a_page(site: Granting, tenant: str) -> None:
    """What a page says was done is one of a few sentences, whatever the address has."""
    page = Visitor(site, tenant, 'operator').of(tenant, '?done=You+are+hacked')
    assert 'hacked' not in page
    assert page.html.find(role='status') is None


FORM = 'application/x-www-form-urlencoded'
MULTIPART = 'multipart/form-data'


@pytest.mark.parametrize(
    ('kind', 'body'),
    [
        (FORM, b''),
        (FORM, b'\xff\xfe&token=%FF&sure=%FF'),
        (f'{FORM}; charset=nonsense', b'token=1.2'),
        (MULTIPART, b'abc'),
        (f'{MULTIPART}; boundary=\xff', b'abc'),
        (f'{MULTIPART}; boundary=x', b'--x\r\ntoken'),
        (f'{MULTIPART}; boundary=x',
         b'--x\r\nContent-Disposition: form-data; name="token"; filename="f"\r\n\r\n1.2\r\n--x--'),
        ('application/json', b'{"token": "1.2"}'),
        ('', b'token=1.2'),
    ],
)  # fmt: skip
def test_damaged_form_changes_nothing(
    site: Granting, tenant: str, kind: str, body: bytes
) -> None:
    """A body that is no form of ours is a page that says so."""
    visitor = Visitor(site, tenant, 'admin')
    page = visitor.send_raw(
        f'/tenants/{tenant}/evict', method='POST', body=body, content_type=kind, status=403
    )
    assert 'Nothing was changed' in page


@pytest.mark.parametrize('method', ['PUT', 'DELETE', 'PATCH', 'OPTIONS'])
def test_other_methods_are_refused(site: Granting, tenant: str, method: str) -> None:
    """Pages are read, and forms are posted; nothing else is."""
    visitor = Visitor(site, tenant, 'operator')
    for path in '', '/servers', f'/tenants/{tenant}', f'/tenants/{tenant}/evict':
        visitor.send_raw(path, method=method, status=405)


def test_database_that_is_away_is_a_page(on_servers: Applications, tenant: str) -> None:
    """If the database can't say whether there is a tenant, a page says so; the tenant of the
    request is shown."""
    with PostgresServer() as server:
        app = on_servers.start(Granting, dsn=server.dsn)
        change(app, tenant, User(name='Ann'))
        Visitor(app, tenant).client.get('/')
        server.crash()
        operator = Visitor(app, tenant, 'operator')
        page = operator.of('nowhere', status=503)
        assert 'The database can not be reached' in page
        assert server.dsn not in page
        assert operator.of(tenant).html.h1.text == tenant
        servers = operator.get('/servers')
        assert 'It can not be read' in servers


@pytest.mark.parametrize('package', ['jinja2', 'morepath'])
def test_missing_extra_is_named(package: str) -> None:
    """Without the packages of the extra, the import says what to install."""
    program = f"""
import sys
sys.modules['{package}'] = None
from onegov_ormcache.errors import MissingExtraError
try:
    import onegov_ormcache.tools.inspector
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.stdout.strip() == (
        f'The inspector needs {package}: python -m pip install "onegov_ormcache[inspector]"'
    ), done.stderr


def test_message_of_an_error_is_no_markup(site: Granting, tenant: str) -> None:
    """What a page repeats of a request is text."""
    page: Any = Visitor(site, tenant, 'operator').of('%3Cb%3Ex', status=404)
    assert '<b>' not in page
