"""The README's code works when it is pasted, and is as short as it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from webtest import TestApp as Client

README = Path(__file__).parent.parent / 'README.md'
BLOCKS = re.findall(r'^```(\w*)\n(.*?)^```$', README.read_text(), re.DOTALL | re.MULTILINE)


def test_first_two_blocks_are_one_command_each() -> None:
    """The first block runs the demo, the second the tests, each in one line."""
    (demo_kind, demo), (tests_kind, tests) = BLOCKS[:2]
    assert demo_kind == tests_kind == 'sh'
    assert demo.count('\n') == tests.count('\n') == 1
    assert demo.strip().endswith('-m onegov_ormcache demo')
    assert tests.strip().endswith('-m pytest')


def test_cached_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the option that the README names, the quick start's page is cached as a whole."""
    text, option = README.read_text(), '@App.json(model=Root, cached=True)'
    assert f'`{option}`' in text
    code = BLOCKS[2][1]
    assert code.count('@App.json(model=Root)') == 1
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'cached_page.py').write_text(code.replace('@App.json(model=Root)', option))
    application = importlib.import_module('cached_page').application
    client = Client(application)
    assert client.get('/?add=Ann').json == ['Ann']
    page = client.get('/')
    assert client.get('/', headers={'If-None-Match': page.headers['ETag']}, status=304).body == b''
    assert client.get('/?add=Bob').json == ['Ann', 'Bob']
    assert client.get('/', headers={'If-None-Match': page.headers['ETag']}).json == ['Ann', 'Bob']
    application.app.close_orm_cache()


def test_quick_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick start has at most 30 lines, runs as it stands, and caches."""
    kind, code = BLOCKS[2]
    assert kind == 'python'
    assert len(code.splitlines()) <= 30
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'quick_start.py').write_text(code)
    application = importlib.import_module('quick_start').application
    client = Client(application)
    assert client.get('/').json == []
    assert client.get('/?add=Ann').json == ['Ann']
    assert client.get('/').json == ['Ann']
    with application.app.recording() as events:
        assert client.get('/').json == ['Ann']
    assert [event.tier for event in events] == ['process']
    application.app.close_orm_cache()


def test_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the README adds to the quick start's class runs there, and caches by argument."""
    addition = next(code for _, code in BLOCKS[3:] if 'rows(' in code)
    head, begin, rest = BLOCKS[2][1].partition('class App(OrmCacheApp):\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'with_function.py').write_text(head + begin + addition + '\n' + rest)
    module = importlib.import_module('with_function')
    app = module.application.app
    client = Client(module.application)
    client.get('/?add=Ann')
    client.get('/?add=Bob')
    with app.request_scope('main'):
        assert app.user_name.many([1, 2, 3]) == {1: 'Ann', 2: 'Bob', 3: None}
    with app.request_scope('main'):
        app.session().get(module.User, 2).name = 'Ben'
        app.session().commit()
    with app.request_scope('main'), app.recording() as events:
        assert [app.user_name(1), app.user_name(2)] == ['Ann', 'Ben']
    assert [event.tier for event in events] == ['process', 'creator']
    app.close_orm_cache()


def test_links_lead_somewhere() -> None:
    """Every file that the README links to is there."""
    for target in re.findall(r'\]\(([^)h][^)]*)\)', README.read_text()):
        assert (README.parent / target).exists(), target
