"""The documentation: it builds, names everything, and nothing that does not exist.

Its examples are run by docs/conftest.py.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from configparser import ConfigParser
from contextlib import closing, contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree

import onegov_ormcache
from onegov_ormcache import errors
from onegov_ormcache.core.settings import OUTAGE_POLICIES, OrmCacheSettings
from onegov_ormcache.web import settings as settings_module
from onegov_ormcache.web.cached_views import CachingResponses
from onegov_ormcache.web.directives import (
    OrmCachedDirective,
    Prefetching,
    RequestCachedDirective,
)
from onegov_ormcache.web.settings import AppSettings
from tests.support.only_extra import declared

ROOT = Path(__file__).parent.parent
DOCS = ROOT / 'docs'
PAGES = sorted(DOCS.glob('*.rst'))


@pytest.fixture(scope='module')
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the documentation as HTML, built with warnings as errors, and with nothing
    that the extra for it does not install."""
    folder = tmp_path_factory.mktemp('docs')
    command = [sys.executable, '-m', 'tests.support.only_extra', 'docs']
    command += ['sphinx', '-W', '--keep-going', '-q', '-b', 'html']
    done = subprocess.run(
        [*command, '-d', str(folder / 'doctrees'), str(DOCS), str(folder / 'html')],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return folder / 'html'


def test_builds_without_warnings(built: Path) -> None:
    """Sphinx builds every page, and warns of nothing."""
    assert {page.stem for page in PAGES} <= {page.stem for page in built.glob('*.html')}


def test_extra_for_the_documentation_has_all_others() -> None:
    """The reference imports each module, so it needs what any of them needs, apart from tools that
    work on the package."""
    (all_others,) = (each for each in declared('docs') if each.name == 'onegov_ormcache')
    parsed = ConfigParser()
    parsed.read(ROOT / 'setup.cfg', encoding='utf-8')
    extras = set(parsed['options.extras_require']) - {'test', 'lint', 'bench', 'docs'}
    assert all_others.extras == extras


def test_every_extra_is_explained() -> None:
    """The quickstart's table has each extra once, in setup.cfg's order, and what it is for."""
    parsed = ConfigParser()
    parsed.read(ROOT / 'setup.cfg', encoding='utf-8')
    tables = tree(DOCS / 'quickstart.rst').findall(nodes.table)
    (table,) = (each for each in tables if 'extras-table' in each['names'])
    assert [name for name, _ in cells(table)] == list(parsed['options.extras_require'])
    assert all(meaning for _, meaning in cells(table))


@pytest.mark.parametrize('page', [*PAGES, ROOT / 'README.md'], ids=lambda page: page.stem)
def test_extras_to_install_exist(page: Path) -> None:
    """Whatever a page tells to install has extras that there are."""
    parsed = ConfigParser()
    parsed.read(ROOT / 'setup.cfg', encoding='utf-8')
    told = re.findall(r'onegov_ormcache\[([\w,]*)\]', page.read_text(encoding='utf-8'))
    named = {extra for each in told for extra in each.split(',')}
    assert named <= set(parsed['options.extras_require'])
    assert named or page.stem not in ('README', 'command_line', 'inspector', 'quickstart')


def test_what_an_extra_lacks_is_missing() -> None:
    """A module that the extra does not install can't be imported in the build."""
    command = [sys.executable, '-m', 'tests.support.only_extra', 'docs', 'hypothesis']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode
    assert "No module named 'hypothesis'" in done.stderr


def test_every_module_has_its_place() -> None:
    """The page for contributors lists each module once, and none that there is not."""
    text = (DOCS / 'contributing.rst').read_text(encoding='utf-8')
    listed = re.findall(r'^   (onegov_ormcache\.\S+)$', text, re.MULTILINE)
    package = ROOT / 'onegov_ormcache'
    paths = [path.relative_to(ROOT).with_suffix('') for path in package.rglob('*.py')]
    modules = ['.'.join(path.parts) for path in paths if path.name != '__init__']
    assert sorted(listed) == sorted(modules)


def test_changes_begin_in_files_that_there_are() -> None:
    """The table 'Where a change belongs' names files and folders of the package or repository."""
    (table,) = tree(DOCS / 'contributing.rst').findall(nodes.table)
    texts = [literal.astext() for literal in table.findall(nodes.literal)]
    paths = [text for text in texts if re.fullmatch(r'\w+([/.]\w+)+', text)]
    places = ROOT, ROOT / 'onegov_ormcache', ROOT / 'tests' / 'tools' / 'inspector'
    missing = [path for path in paths if not any((place / path).exists() for place in places)]
    assert len(paths) > 50
    assert missing == []


def test_every_error_is_in_the_reference(built: Path) -> None:
    """The page of errors has an entry for each class, and each has a docstring."""
    html = (built / 'errors.html').read_text(encoding='utf-8')
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 10
    for cls in classes:
        assert f'id="onegov_ormcache.errors.{cls.__name__}"' in html
        assert vars(cls)['__doc__']


def test_every_public_name_is_in_the_reference(built: Path) -> None:
    """The page of public names has an entry for each, apart from errors."""
    html = (built / 'api.html').read_text(encoding='utf-8')
    for name in onegov_ormcache.__all__:
        assert name in html
        if not hasattr(errors, name):
            assert f'id="onegov_ormcache.{name}"' in html


# what pages say


def code_blocks(page: str, language: str) -> Iterator[str]:
    """The code blocks of a page in one language."""
    for block in tree(DOCS / page).findall(nodes.literal_block):
        if language in block['classes']:
            yield block.astext()


def tree(page: Path) -> nodes.document:
    """A page as docutils reads it, without Sphinx."""
    return publish_doctree(
        page.read_text(encoding='utf-8'),
        settings_overrides={'report_level': 5, 'syntax_highlight': 'none'},
    )


def cells(table: nodes.Element) -> list[list[str]]:
    """The texts of a table's cells, row by row, without its header."""
    rows = list(table.findall(nodes.row))[1:]
    return [[entry.astext() for entry in row.findall(nodes.entry)] for row in rows]


def test_settings_are_those_of_the_class() -> None:
    """The table has each setting once, in its order, with its type and its default."""
    rows = cells(tree(DOCS / 'settings.rst'))
    assert [row[0] for row in rows] == [field.name for field in fields(AppSettings)]
    for (_, type_, default, meaning), field in zip(rows, fields(AppSettings), strict=True):
        assert type_ == field.type
        assert field.default is not MISSING
        assert eval(default, dict(vars(settings_module))) == field.default
        assert meaning


def test_settings_of_the_core_come_first() -> None:
    """The page says by one name which settings a program without Morepath has not."""
    names = [field.name for field in fields(AppSettings)]
    core = [field.name for field in fields(OrmCacheSettings)]
    assert names[: len(core)] == core
    text = (DOCS / 'settings.rst').read_text(encoding='utf-8')
    assert f'without those from ``{names[len(core)]}`` on' in text


def parameters(*functions: Any) -> dict[str, Any]:
    """The names that may be given to functions, with their defaults; no ``*options``."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        each.name: each.default
        for function in functions
        for each in inspect.signature(function).parameters.values()
        if each.kind in named
    }


#: The table of each group of options, with the options and defaults that it must have.
OPTIONS: dict[str, dict[str, Any]] = {
    'orm_cached': parameters(OrmCachedDirective),
    'request_cached': parameters(RequestCachedDirective),
    'rows': {'columns': inspect.Parameter.empty, **parameters(onegov_ormcache.rows)},
    'view': parameters(Prefetching, CachingResponses),
    'cached': parameters(onegov_ormcache.cached),
}


@pytest.mark.parametrize('group', OPTIONS)
def test_options_are_those_of_the_code(group: str) -> None:
    """The table has each option once, in its order, with its default and what it means."""
    tables = tree(DOCS / 'options.rst').findall(nodes.table)
    (table,) = (each for each in tables if f'options-{group}' in each['names'])
    rows = cells(table)
    assert [row[0] for row in rows] == list(OPTIONS[group])
    for (name, default, meaning), expected in zip(rows, OPTIONS[group].values(), strict=True):
        if expected is inspect.Parameter.empty:
            assert default == 'required', name
        else:
            assert eval(default) == expected, name
        assert meaning


def test_decorators_have_the_options_of_directives() -> None:
    """The table of the directive stands for the decorator as well, which lacks two of them."""
    for decorator in 'orm_cached', 'request_cached':
        options = set(parameters(getattr(onegov_ormcache, decorator))) - {'creator'}
        assert options == set(OPTIONS[decorator]) - {'name', 'target'}


def test_changelog_is_kept() -> None:
    """Each release of the changelog has a version and a date, and sections of known names, in one
    order; the newest release is that of the package."""
    text = (ROOT / 'CHANGES.md').read_text(encoding='utf-8')
    first, *releases = re.findall(r'^## (.*)$', text, re.MULTILINE)
    assert first == 'Unreleased'
    assert all(re.fullmatch(r'\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d', each) for each in releases)
    parsed = ConfigParser()
    parsed.read(ROOT / 'setup.cfg', encoding='utf-8')
    assert releases[0].split()[0] == parsed['metadata']['version']
    order = [
        'Before you upgrade', 'Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security',
    ]  # fmt: skip
    for release in re.split(r'^## ', text, flags=re.MULTILINE)[1:]:
        sections = re.findall(r'^### (.*)$', release, re.MULTILINE)
        assert sections
        assert sections == [each for each in order if each in sections]


#: Pages that list names, and explain none of them by what it is good for.
LISTS = {'api', 'changes', 'errors', 'options', 'settings'}


def test_every_name_is_explained() -> None:
    """Each public name, setting and option is in a page that says what to use it for, too."""
    texts = [page.read_text(encoding='utf-8') for page in PAGES if page.stem not in LISTS]
    known = set(re.findall(r'\w+', '\n'.join(texts)))
    assert set(onegov_ormcache.__all__) - {'OrmCacheError'} <= known
    assert {field.name for field in fields(AppSettings)} <= known
    written = set(re.findall(r'(\w+)=', '\n'.join(texts)))
    options = {name for group in OPTIONS.values() for name in group} - {'columns'}
    assert options <= written


def test_outage_policies_are_explained() -> None:
    """The page on deployment says what each value of on_outage costs."""
    text = (DOCS / 'deployment.rst').read_text(encoding='utf-8')
    for policy in OUTAGE_POLICIES:
        assert f"``'{policy}'``\n" in text


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_named_tests_exist(page: Path) -> None:
    """Each test that a page names as its witness is one."""
    sources = [path.read_text(encoding='utf-8') for path in (ROOT / 'tests').rglob('*.py')]
    known = set(re.findall(r'^\s*def (test_\w+)', '\n'.join(sources), re.MULTILINE))
    named = set(re.findall(r'``(test_\w+)``', page.read_text(encoding='utf-8')))
    assert named <= known
    assert named or page.stem != 'how_it_works'


# the quickstart, as a newcomer follows it


def test_quickstart_is_short() -> None:
    """The quickstart's program has at most 30 lines of code."""
    (program,) = code_blocks('quickstart.rst', 'python')
    assert sum(1 for line in program.splitlines() if line.strip()) <= 30


def iter_until(word: str, lines: Iterable[str]) -> Iterator[str]:
    """The lines up to the first one with the word."""
    for line in lines:
        yield line
        if word in line:
            return


@contextmanager
def serving(page: str, folder: Path, *command: str) -> Iterator[str]:
    """Save a page's first program as `town.py`, serve it by a module, and yield its URL.

    The server says its URL itself, with `on`.
    """
    program = next(code_blocks(page, 'python'))
    (folder / 'town.py').write_text(program, encoding='utf-8')
    server = subprocess.Popen(
        [sys.executable, '-u', '-m', *command],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'NO_COLOR': '1'},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert server.stderr is not None
        lines = list(iter_until(' on http://', server.stderr))
        assert ' on http://' in lines[-1], lines
        yield lines[-1].split(' on ')[1].strip()
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # with the server that a reloader has started
        server.communicate(timeout=30)


def answers(url: str) -> list[bytes]:
    """What a program answers to a post of a name, and then to a get."""
    data = urllib.parse.urlencode({'name': 'Ada'}).encode()
    found = []
    for each in data, None:
        with urllib.request.urlopen(url, each, timeout=30) as response:
            found.append(b''.join(response.read().split()))
    return found


def test_quickstart_works_when_pasted(tmp_path: Path) -> None:
    """The quickstart's program, saved and served by waitress, gives the answers shown."""
    command = 'waitress', '--listen=127.0.0.1:0', 'town:application'
    with serving('quickstart.rst', tmp_path, *command) as url:
        assert answers(url) == [b'null', b'["Ada"]']
    assert (tmp_path / 'tenants' / 'main.sqlite').exists()


# the page on testing


def test_testing_page_works_when_pasted(tmp_path: Path) -> None:
    """The application and the tests of the page on testing are what pytest runs."""
    application = next(code_blocks('testing.rst', 'python'))
    (tests,) = code_blocks('testing.rst', 'python3')
    (tmp_path / 'town.py').write_text(application, encoding='utf-8')
    (tmp_path / 'test_town.py').write_text(tests, encoding='utf-8')
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert '2 passed' in done.stdout, done.stdout + done.stderr


# the pages for other frameworks


def test_flask_page_works_when_pasted(tmp_path: Path) -> None:
    """The program of the page on Flask runs with the reloader, whose other process imports it."""
    with closing(socket.create_server(('127.0.0.1', 0))) as free:
        port = str(free.getsockname()[1])
    command = 'flask', '--app', 'town', 'run', '--debug', '--port', port
    with serving('flask.rst', tmp_path, *command) as url:
        assert answers(url) == [b'["Ada"]', b'["Ada"]']
    assert (tmp_path / 'instance' / 'town.sqlite').exists()


def test_pyramid_page_works_when_pasted(tmp_path: Path) -> None:
    """The program of the page on Pyramid, served by waitress, gives the answers shown."""
    command = 'waitress', '--listen=127.0.0.1:0', '--call', 'town:main'
    with serving('pyramid.rst', tmp_path, *command) as url:
        assert answers(url) == [b'["Ada"]', b'["Ada"]']
    assert (tmp_path / 'town.sqlite').exists()
