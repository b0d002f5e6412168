"""The town hall shows a visitor the pages of one tenant, as far as the visitor's role allows."""

from __future__ import annotations

import pytest
from webtest import TestApp

from fixtures.townhall.serving import tenant_of
from tests.functional.visitors import CHANGES, TownHall

# tenants


def test_tenants_are_kept_apart(hall: TownHall) -> None:
    """A change of one tenant is no change of another, whose values stay cached."""
    hall.load('li')
    before = hall.everything('li')
    assert hall.get('/', tenant='li')['title'] == 'Liechtenstein'
    for change in 'rename the country', 'close all tickets', 'rename an article', 'add a user':
        hall.everything()
        hall.post(*CHANGES[change])
        assert hall.computed('li') == set()
        assert hall.computed() != set()
    assert hall.everything('li') == before == hall.fresh('li')


def test_tenant_is_taken_from_the_host(hall: TownHall) -> None:
    """The host's first label names the tenant; the header counts more."""
    hall.load('li')
    visitor = TestApp(hall.application)
    assert visitor.get('http://is.localhost:8080/').json['title'] == 'Iceland'
    assert visitor.get('http://LI.example.org/').json['title'] == 'Liechtenstein'
    named = visitor.get('http://is.localhost/', headers={'X-Tenant': 'li'})
    assert named.json['title'] == 'Liechtenstein'
    assert tenant_of({'HTTP_HOST': 'localhost:8080'}) is None
    assert tenant_of({}) is None


@pytest.mark.parametrize('tenant', ['li', 'nowhere', '../is', 'is%', "is'", 'IS', 'x' * 80])
def test_unknown_tenant_is_404(hall: TownHall, tenant: str) -> None:
    """A tenant that does not exist is answered with 404, and is not created."""
    manager = hall.application.app.session_manager
    before = manager.list_schemas(hall.prefix)
    assert before == [hall.prefix + 'is']
    hall.visitor(tenant).get('/', status=404)
    hall.visitor(tenant, 'editor').post('/tickets', {'title': 'New'}, status=404)
    assert manager.list_schemas(hall.prefix) == before
    assert not manager.has_schema(hall.prefix + tenant)


def test_request_for_nobody_is_404(hall: TownHall) -> None:
    """A request that names no tenant is answered with 404."""
    TestApp(hall.application).get('http://localhost/', status=404)


# roles


def test_roles_see_their_own_tree(hall: TownHall) -> None:
    """Each role sees the pages of the roles before it, and some more; whoever asks first."""
    for users in [None, 'member', 'editor', 'admin'], ['admin', 'editor', 'member', None]:
        hall.application.app.orm_cache.tags.renew(hall.prefix + 'is')
        seen = {user: set(hall.titles(user)) for user in users}
        assert 'Intranet' not in seen[None]
        assert seen['member'] - seen[None] == {'Intranet'}
        assert seen['editor'] - seen['member'] == {'Drafts'}
        assert seen['admin'] - seen['editor'] == {'Salaries'}
        assert seen[None] < seen['member'] < seen['editor'] < seen['admin']


def test_hidden_pages_are_404(hall: TownHall) -> None:
    """A page that a role does not see in the tree is not shown to it either."""
    assert hall.get('/pages/13', 'admin')['title'] == 'Salaries'
    for user in None, 'member', 'editor', 'nobody':
        hall.visitor(user=user).get('/pages/13', status=404)


def test_changed_role_counts_at_once(hall: TownHall) -> None:
    """A user's next request has the role that was given to the user."""
    assert 'Salaries' not in hall.titles('member')
    hall.post('/tickets/1/close', {}, 'member', 403)
    hall.post('/users/3/role', {'role': 'admin'})
    assert 'Salaries' in hall.titles('member')
    hall.post('/tickets/1/close', {}, 'member')
    hall.post('/users/3/delete', {})
    assert hall.titles('member') == hall.titles(None)
