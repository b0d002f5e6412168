"""What the pages of the inspector say: figures, reasons, changes, and that there are none yet."""

from __future__ import annotations

import re
from contextvars import Context
from typing import Any

import pytest

from onegov_ormcache import orm_cached, steps
from onegov_ormcache.statistics.results import SlotCounts
from onegov_ormcache.steps import Step
from onegov_ormcache.tools.inspector import charts
from tests.support.applications import Applications, change, committed
from tests.support.models import Document, User
from tests.support.site_with_inspector import WHERE, Granting, Visitor


def cells(page: Any, table: str, row: str) -> list[str]:
    """Return the texts of one row of a table, which is found by the id of its caption."""
    body = page.html.find(id=table).find_parent('table').tbody
    for each in body.find_all('tr'):
        if row in each.th.text:
            return [cell.text.strip() for cell in each.find_all('td')]
    raise AssertionError(f'{table} has no row {row}: {body.text}')


def figures(page: Any) -> dict[str, str]:
    """Return the figures at the top of a page, by what they are."""
    found = page.html.find_all('div', class_='figure')
    return {each.dt.text: ' '.join(each.dd.text.split()) for each in found}


def test_figures_are_those_of_the_application(site: Granting, tenant: str) -> None:
    """Reads, hit rate and runs are shown per tenant and per property."""
    visitor = Visitor(site, tenant)
    for _ in range(4):
        visitor.client.get('/read')
    operator = Visitor(site, tenant, 'operator')
    counted = site.orm_cache.statistics.of(tenant).properties
    users = counted[f'{WHERE}.users']
    assert (users.gets, users.misses) == (4, 1)
    row = cells(operator.of(tenant), 'properties', 'users')
    assert row[:2] == ['4', '75.0\xa0%']
    assert row[3] == '1'
    assert row[-1] == 'Stored'
    page = operator.property('users')
    assert figures(page)['Hit rate'] == '75.0 % of 4 reads'
    assert cells(page, 'answers', 'The creator')[0] == '1'
    gets = sum(each.gets for each in counted.values())
    assert f'of {gets} reads' in figures(operator.get())['Hit rate']


def test_looking_does_not_change_the_figures(site: Granting, tenant: str) -> None:
    """A visit of the inspector counts as no read, though identity and rules read properties."""
    visitor = Visitor(site, tenant)
    visitor.client.get('/read')
    before = site.orm_cache.statistics.of(tenant)
    operator = Visitor(site, tenant, 'operator')
    operator.client.set_cookie('reads', 'yes')  # by the site's identity policy and rules
    for _ in range(3):
        for page in operator.get(), operator.of(tenant), operator.property('users'):
            assert page.status_int == 200
    assert site.orm_cache.statistics.of(tenant) == before


def test_reasons_are_told(site: Granting, tenant: str) -> None:
    """A value that is not stored says why, on both pages."""
    Visitor(site, tenant).client.get('/read')
    admin = Visitor(site, tenant, 'admin')
    assert cells(admin.of(tenant), 'properties', 'lucky_user')[-1] == 'Not stored'
    page = admin.property('lucky_user')
    assert 'random()' in page.html.find('div', class_='bad').text
    assert cells(page, 'reasons', 'tainted')[-1] == '1'


def test_policy_is_told(site: Granting, tenant: str) -> None:
    """The page of a property says what its policy means, and by what its values differ."""
    page = Visitor(site, tenant, 'admin').property('user_name').html.main.text
    assert 'rows(User.id)' in page
    assert 'rows whose users.id its arguments name' in page
    assert 'argument id' in page
    assert 'tests.support.site_with_inspector, line' in page
    assert '/' not in page.partition('Its creator is in')[2].partition('.\n')[0]


def test_pages_stand_apart(site: Granting, tenant: str) -> None:
    """Cached responses are shown by their views, with figures like those of properties."""
    visitor = Visitor(site, tenant)
    for _ in range(2):
        visitor.client.get('/')
    admin = Visitor(site, tenant, 'admin')
    page = admin.of(tenant)
    assert cells(page, 'pages', 'view(Page)')[:2] == ['2', '50.0\xa0%']
    own = admin.client.get(page.html.find(id='pages').find_parent('table').tbody.a['href'])
    assert own.html.h1.text == 'view(Page)'
    assert 'asks for it' in own
    admin.evict(own)
    visitor.client.get('/')
    assert cells(admin.of(tenant), 'pages', 'view(Page)')[:2] == ['3', '33.3\xa0%']


def test_changes_are_told(site: Granting, tenant: str) -> None:
    """The page of a property names the commits that have evicted it; that of tags counts them."""
    visitor = Visitor(site, tenant)
    visitor.client.get('/read')
    visitor.client.post('/', {'name': 'Bea'})
    change(site, tenant, Document(kind='document', title='x'))
    admin = Visitor(site, tenant, 'admin')
    page = admin.property('users')
    commits = page.html.find(id='evictions').find_parent('table').tbody.find_all('tr')
    assert commits
    assert all('table:users' in each.td.text for each in commits)
    assert not any('table:documents' in each.td.text for each in commits)
    changes = site.orm_cache.statistics.of(tenant).tags['table:users'].changes
    tags = admin.of(tenant, '/tags')
    row = cells(tags, 'tags', 'table:users')
    assert row[0] == str(changes) == cells(page, 'tags', 'table:users')[0]
    assert 'users' in row[-1]
    assert cells(tags, 'tags', 'table:documents')[-1] == 'failing'
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT[\d:]{8}Z', tags.html.tbody.time['datetime'])


def test_changed_rows_are_told(site: Granting, tenant: str) -> None:
    """A property that depends on rows is evicted by those of any number, and so it is told."""
    Visitor(site, tenant).client.get('/read')
    Visitor(site, tenant).client.post('/', {'name': 'Bea'})
    admin = Visitor(site, tenant, 'admin')
    with committed(site, tenant):
        site.evict('user_name', 1)
    page = admin.property('user_name')
    commits = page.html.find(id='evictions').find_parent('table').tbody.find_all('tr')
    assert [each.td.text for each in commits][:2] == ['by hand', 'rows:users.id:int']
    assert int(cells(page, 'tags', 'rows:users.id:int')[0]) >= 2
    assert 'user_name' in cells(admin.of(tenant, '/tags'), 'tags', 'rows:users.id:int')[-1]


def test_doubt_is_told(
    site: Granting, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag that a transaction is about to change is shown as in doubt, on all pages."""
    Visitor(site, tenant).client.get('/read')
    operator = Visitor(site, tenant, 'operator')
    pages: list[Any] = []

    def look(step: Step) -> None:
        if step is Step.COMMIT and not pages:
            pages.append(None)
            visit = [operator.of(tenant), operator.of(tenant, '/tags'), operator.property('users')]
            pages[:] = visit

    monkeypatch.setattr(steps, 'listener', lambda step: Context().run(look, step))
    change(site, tenant, User(name='Bea'))
    monkeypatch.undo()
    assert not figures(pages[0])['In doubt'].startswith('0')
    assert cells(pages[0], 'properties', 'users')[-1] == 'In doubt'
    assert 'In doubt for' in pages[1].html.find('div', class_='notice').text
    assert cells(pages[1], 'tags', 'table:users')[2] == 'In doubt'
    assert cells(pages[2], 'tags', 'table:users')[-1] == 'In doubt'


def test_nothing_counted_is_said(applications: Applications, tenant: str) -> None:
    """Where nothing was counted, a page says what to do, and has no figures of nothing."""
    app = applications.start(Granting)
    app.session_manager.ensure_schema_exists(tenant)
    admin = Visitor(app, tenant, 'admin')
    for page in admin.get(), admin.of(tenant), admin.property('users'):
        assert 'Nothing was counted yet' in page
        assert 'Open a page of the application' in page
        assert page.html.select('svg[role] rect') == []


def test_text_of_others_is_escaped(applications: Applications, tenant: str) -> None:
    """Whatever is in a name or a reason, it is text and no markup."""

    class Odd(Granting):
        """A site with a property of a strange name."""

    name = '<script>alert(1)</script>"&'
    setattr(Odd, name, orm_cached(policy=User)(lambda self: 1))
    getattr(Odd, name).__set_name__(Odd, name)
    app = applications.start(Odd)
    with committed(app, tenant) as scope:
        getattr(app, name)
        scope.session().add(User(name='x'))
    operator = Visitor(app, tenant, 'operator')
    page = operator.of(tenant)
    (link,) = (each for each in page.html.find_all('a') if '<script>' in each.text)
    assert '<script>' not in page
    own = operator.client.get(link['href'])
    assert '<script>' not in own
    assert own.html.h1.text == name
    assert '<script>' not in operator.get('?find=%3Cscript%3E%22')


def test_tenant_is_found_by_a_part_of_its_name(site: Granting, tenant: str, other: str) -> None:
    """An operator of many tenants finds one."""
    for name in tenant, other:
        Visitor(site, name).client.get('/')
    operator = Visitor(site, tenant, 'operator')
    page = operator.get(f'?find={other[3:].upper()}')
    assert other in page.html.main.text
    assert tenant not in page.html.table.text
    assert 'No tenant has' in operator.get('?find=nowhere')


@pytest.mark.parametrize('role', ['admin', 'operator'])
def test_servers_are_told_without_passwords(site: Granting, tenant: str, role: str) -> None:
    """The page of the servers names them, for operators, and no password."""
    visitor = Visitor(site, tenant, role)
    page = visitor.get('/servers', expect_errors=role == 'admin')
    if role == 'operator':
        assert 'All is well' in page
        assert site.orm_cache.settings.namespace in page
        assert 'password' not in page


# charts


def test_bars_stand_on_one_another() -> None:
    """The parts of an hour are as high as their values, and what is small can still be seen."""
    (low, high, tiny) = charts.bars([[('hits', 3), ('misses', 1)], [('hits', 0.001)], []], 4)
    assert (low.y, low.height, low.kind) == (charts.HEIGHT / 4, charts.HEIGHT * 3 / 4, 'hits')
    assert (high.y, high.height, high.kind) == (0, charts.HEIGHT / 4, 'misses')
    assert tiny.height == charts.LEAST
    assert tiny.x > high.x == low.x


def test_chart_covers_a_day_and_ends_now() -> None:
    """A chart has 24 hours; those without counts are empty, and older ones left out."""
    last = charts.present_hours()[-1]
    hours = {last: SlotCounts(3, 1, 0.5), last - 30 * 3600: SlotCounts(9, 9, 9.0)}
    for chart in charts.charts(hours):
        assert len(chart.hours) == 24
        assert chart.hours[-1].start - chart.hours[0].start == 23 * 3600
    gets, rate, cost = charts.charts(hours)
    assert gets.summary == '3 hits and 1 misses in the last 24 hours.'
    assert rate.hours[-1].values == ('75.0%',)
    assert rate.hours[0].values == ('-',)
    assert len(rate.bars) == len(cost.bars) == 1
    assert not any(chart.bars for chart in charts.charts({}))


@pytest.mark.parametrize(
    ('value', 'top'), [(0, 1), (0.02, 0.02), (1, 1), (7, 8), (11, 15), (4200, 5000), (99, 100)]
)
def test_scale_ends_at_a_round_number(value: float, top: float) -> None:
    """The upper end of a chart is round, and not below what is drawn."""
    assert charts.round_up(value) == pytest.approx(top)
