"""The inspector as people get it: in a real browser, by keyboard, in light and dark, on a phone.

The pages are those of the town hall after a day. axe-core looks for what a screen reader or weak
eyes can't use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.support.browser import MISSING, chromium, find_program, served
from tests.support.servers import drop_schemas
from tests.support.town_with_inspector import OPERATOR, PROPERTY, READER, age, make_town, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(find_program() is None, reason=MISSING)

#: The rules of axe-core: those of WCAG 2.2, levels A and AA, and good practice beside them.
RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']

#: The pages, each with its path; ``{busy}`` is a tenant with many visits, ``{idle}`` has none.
PAGES = {
    'tenants': '/cache/',
    'found tenants': '/cache/?find=is',
    'no tenant found': '/cache/?find=nowhere',
    'busy tenant': '/cache/tenants/{busy}',
    'idle tenant': '/cache/tenants/{idle}',
    'evicted': '/cache/tenants/{busy}?done=evict',
    'property': '/cache/tenants/{busy}/property?name=' + PROPERTY,
    'idle property': '/cache/tenants/{idle}/property?name=' + PROPERTY,
    'tags': '/cache/tenants/{busy}/tags',
    'tags of an idle tenant': '/cache/tenants/{idle}/tags',
    'servers': '/cache/servers',
    'missing page': '/cache/nothing',
}

NARROW, WIDE = 320, 1280

#: Makes a promise that an element is scrolled.
SCROLLED = """
e => { window.scrolled = new Promise(done => e.addEventListener('scroll', done, {once: true})) }
"""


class TownInBrowser:
    """The town hall, served to a browser.

    :param url: where it is.
    :param busy: a tenant with many visits.
    :param idle: a tenant that nobody has visited.
    """

    def __init__(self, url: str, busy: str, idle: str, browser: Browser) -> None:
        self.url = url
        self.busy = busy
        self.idle = idle
        self.browser = browser

    @contextmanager
    def opened(self, path: str, width: int = WIDE, **options: Any) -> Iterator[Page]:
        """Open a page in a window of its own.

        :param options: of the window; by default an operator's.
        """
        chosen = {'extra_http_headers': OPERATOR, **options}
        with self.browser.new_context(
            viewport={'width': width, 'height': 800}, **chosen
        ) as context:
            page = context.new_page()
            page.goto(self.url + path.format(busy=self.busy, idle=self.idle))
            yield page


@pytest.fixture(scope='module')
def town(postgres_dsn: str, redis_url: str) -> Iterator[TownInBrowser]:
    """The town hall after a day, and a browser."""
    prefix = f't{uuid4().hex[:12]}_'
    tenants = [f'{prefix}{code}' for code in ('is', 'li')]
    settings = {'dsn': postgres_dsn, 'redis_url': redis_url, 'namespace': prefix}
    application = make_town(settings, tenants)
    try:
        busy, idle = tenants
        visit(application, [busy], times=8)
        age(application, [busy])
        program = find_program()
        assert program is not None
        with served(application) as url, chromium(program) as browser:
            yield TownInBrowser(url, busy, idle, browser)
    finally:
        application.app.close_orm_cache()
        drop_schemas(postgres_dsn, prefix)


def make_axe() -> Any:
    """Return the checker; that of ``ORMCACHE_TEST_AXE``, an ``axe.min.js``, if it is set."""
    from axe_playwright_python.sync_playwright import Axe

    path = os.environ.get('ORMCACHE_TEST_AXE')
    return Axe.from_file(path) if path else Axe()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', PAGES)
def test_page_is_accessible(town: TownInBrowser, name: str, scheme: str) -> None:
    """axe-core finds nothing on a page, narrow or wide, with the tables beside charts shown."""
    axe = make_axe()
    for width in NARROW, WIDE:
        with town.opened(PAGES[name], width, color_scheme=scheme) as page:
            page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
            found = axe.run(page, options={'runOnly': RULES, 'resultTypes': ['violations']})
            assert not found.violations_count, found.generate_report()


def test_checker_finds_what_is_wrong(town: TownInBrowser) -> None:
    """The checker of the test above does its work: it misses a name, and contrast."""
    with town.opened('/cache/') as page:
        page.evaluate('document.querySelector("h1").style.color = "#eee"')
        page.evaluate('document.querySelector("main").append(document.createElement("button"))')
        found = make_axe().run(page, options={'runOnly': RULES})
        assert {'button-name', 'color-contrast'} <= {
            each['id'] for each in found.response['violations']
        }


@pytest.mark.parametrize('name', PAGES)
def test_page_fits_into_a_narrow_window(town: TownInBrowser, name: str) -> None:
    """No page is wider than a phone; a table that is can be scrolled, with the keyboard too."""
    with town.opened(PAGES[name], NARROW) as page:
        page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
        assert page.evaluate('document.documentElement.scrollWidth') <= NARROW
        for region in page.locator('.scroll').all():
            if region.evaluate('e => e.scrollWidth > e.clientWidth'):
                region.focus()
                region.evaluate(SCROLLED)
                page.keyboard.press('ArrowRight')
                assert page.evaluate('window.scrolled.then(() => true)')


@pytest.mark.parametrize('name', PAGES)
def test_page_loads_only_what_it_may(town: TownInBrowser, name: str) -> None:
    """The browser refuses nothing of a page, has its style, and asks no other server."""
    asked: list[str] = []
    complaints: list[str] = []
    with town.opened('/cache/') as page:
        page.on('request', lambda request: asked.append(request.url))
        page.on('console', lambda said: complaints.append(said.text))
        page.on('pageerror', lambda error: complaints.append(str(error)))
        page.goto(town.url + PAGES[name].format(busy=town.busy, idle=town.idle))
        shown = page.evaluate('getComputedStyle(document.body).fontFamily')
        assert 'system-ui' in shown
    # a browser reports the status of a missing page itself
    assert [text for text in complaints if 'status of 404' not in text] == []
    assert {url.removeprefix(town.url).partition('/')[0] for url in asked} == {''}


def test_colours_follow_the_system(town: TownInBrowser) -> None:
    """A page is dark where the system is."""
    colours = {}
    for scheme in 'light', 'dark':
        with town.opened('/cache/', color_scheme=scheme) as page:
            colours[scheme] = page.evaluate('getComputedStyle(document.body).backgroundColor')
    assert colours['light'] != colours['dark']
    brightness = {scheme: int(text[4:].split(',')[0]) for scheme, text in colours.items()}
    assert brightness['dark'] < 60 < 200 < brightness['light']


def test_keyboard_reaches_everything(town: TownInBrowser) -> None:
    """The first stop leads past the head; each stop is seen to have the focus; a button works."""
    with town.opened(PAGES['property']) as page:
        page.keyboard.press('Tab')
        skip = page.locator(':focus')
        assert skip.inner_text() == 'Skip to the content'
        assert skip.is_visible()
        assert (skip.bounding_box() or {'x': -1})['x'] >= 0
        page.keyboard.press('Enter')
        assert page.evaluate('document.activeElement.id') == 'content'
        stops = page.locator('main :is(a, button, summary, input:not([type=hidden]), .scroll)')
        for _ in range(stops.count()):
            page.keyboard.press('Tab')
            outline = page.evaluate('getComputedStyle(document.activeElement).outline')
            assert 'solid 3px' in outline
        assert page.locator(':focus').inner_text() == 'Evict and compute now'
        page.keyboard.press('Shift+Tab')
        page.keyboard.press('Enter')
        page.wait_for_url('**done=evict')
        assert 'Evicted' in page.get_by_role('status').inner_text()


def test_forms_work_without_javascript(town: TownInBrowser) -> None:
    """All of it is HTML: nothing needs a script."""
    with town.opened(PAGES['busy tenant'], java_script_enabled=False) as page:
        page.get_by_role('checkbox').check()
        page.get_by_role('button', name='Evict everything').click()
        page.wait_for_url('**done=evict')
        assert page.get_by_role('status').is_visible()
        page.get_by_role('link', name='departments').first.click()
        page.get_by_role('button', name='Evict and compute now').click()
        page.wait_for_url('**done=refresh')
        assert page.get_by_role('status').is_visible()


def test_screen_reader_finds_its_way(town: TownInBrowser) -> None:
    """A page has landmarks, one heading of the first level, none left out, and tables and charts
    with names."""
    with town.opened(PAGES['busy tenant']) as page:
        for role in 'banner', 'main', 'contentinfo':
            assert page.get_by_role(role).count() == 1
        assert page.get_by_role('navigation', name='Breadcrumb').count() == 1
        assert page.get_by_role('heading', level=1).all_inner_texts() == [town.busy]
        assert page.get_by_role('table', name='Properties, the most costly first').count() == 1
        assert page.get_by_role('rowheader', name='departments').count() == 1
        assert page.get_by_role('img', name='Reads per hour').count() == 1


class Attacker:
    """A site that sends a form of the inspector as soon as somebody opens it."""

    def __init__(self) -> None:
        self.form = ''

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        start_response('200 OK', [('Content-Type', 'text/html')])
        return [self.form.encode()]


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1'])
def test_browser_tells_of_a_form_from_elsewhere(town: TownInBrowser, host: str) -> None:
    """A foreign page can't send a form in a visitor's name, not even with the right token; be it
    of another site (localhost), or of another host of the same (another port)."""
    attacker = Attacker()
    with served(attacker) as elsewhere, town.opened(PAGES['property']) as page:
        form = page.locator('form').first
        attacker.form = (
            form.evaluate('e => e.outerHTML').replace('action="', f'action="{town.url}')
            + '<script>document.forms[0].submit()</script>'
        )
        with page.expect_navigation(url='**/property/evict*') as answer:
            page.goto(elsewhere.replace('127.0.0.1', host), wait_until='commit')
        assert answer.value is not None
        assert answer.value.status == 403
        assert 'another site' in page.get_by_role('main').inner_text()


def test_page_is_shown_in_no_frame(town: TownInBrowser) -> None:
    """A foreign page can't show the inspector in a frame, to have its buttons clicked."""
    attacker = Attacker()
    attacker.form = f'<iframe src="{town.url}/cache/"></iframe>'
    with served(attacker) as elsewhere, town.opened('/cache/') as page:
        page.goto(elsewhere, wait_until='load')
        assert page.frame_locator('iframe').get_by_text('Cache inspector').count() == 0


def test_reader_gets_no_buttons(town: TownInBrowser) -> None:
    """Who may only look at a tenant sees its pages, and nothing to press."""
    with town.opened(PAGES['busy tenant'], extra_http_headers=READER) as page:
        assert page.get_by_role('heading', level=1).inner_text() == town.busy
        assert page.get_by_role('button').count() == 0
        answer = page.goto(f'{town.url}/cache/tenants/{town.idle}')
        assert answer is not None
        assert answer.status == 403
