"""Dectate's queries and its query tool list every property of an app, wherever it is declared."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import dectate
import morepath
import pytest
from dectate.tool import ToolError

from onegov_ormcache import OrmCacheApp, cached, orm_cached, request_cached, rows
from onegov_ormcache.web.request import OrmCacheRequest
from tests.functional.plain import configured
from tests.support.models import Document, Group, User

ROOT = Path(__file__).parent.parent.parent


def only_secret(document: Any) -> bool:
    return document.state == 'secret'


class Mixed:
    """A class that is no app."""

    @orm_cached(policy='auto')
    def mixed(self) -> int:
        return 1


class Request(OrmCacheRequest):
    @orm_cached(policy='on-table-change:documents', by_role=True)
    def documents(self) -> Any:
        return None


class Town(Mixed, OrmCacheApp):
    request_class = Request

    @orm_cached(policy='on-table-change:users,groups', frozen=True)
    def members(self) -> Any:
        return None

    @orm_cached(policy=[rows(User.id), Group])
    def user(self, id: int) -> Any:
        return None

    @request_cached(merge=True)
    def first(self) -> Any:
        return None

    @orm_cached(policy='on-table-change:users')
    def changed(self) -> Any:
        """Overridden by a property of the other kind."""


@Town.orm_cached(policy=only_secret, name='secrets')
def count_secrets(app: Town) -> int:
    return 1


@Town.orm_cached(policy=Document, target='request')
def titles(request: Any) -> Any:
    return None


@Town.request_cached()
def organisation(app: Town) -> Any:
    return None


class City(Town):
    @orm_cached(policy='on-table-change:users')
    def members(self) -> Any:  # type: ignore[override]
        return None

    @request_cached
    def changed(self) -> Any:
        return None


configured(Town)
City.commit()


def found(app_class: Any, directive: str, **filters: str) -> list[str]:
    """The names that the query tool finds, each as often as it does."""
    return sorted(action.name for action, _ in dectate.query_app(app_class, directive, **filters))


ALL = ['changed', 'documents', 'members', 'mixed', 'secrets', 'titles', 'user']


def test_all_properties_are_listed_once() -> None:
    """Those of directives, class bodies, classes that are no apps, and request classes."""
    assert found(Town, 'orm_cached') == ALL
    assert found(Town, 'request_cached') == ['first', 'organisation']


def test_inherited_properties_are_listed_once() -> None:
    """A subclass has them too, and of an overridden one its own, in the list of its kind."""
    assert found(City, 'orm_cached') == [name for name in ALL if name != 'changed']
    assert found(City, 'request_cached') == ['changed', 'first', 'organisation']
    ((_, creator),) = dectate.Query('orm_cached').filter(name='members')(City)
    assert creator is vars(City)['members'].creator


def test_a_second_commit_lists_the_same() -> None:
    """Nothing is listed twice if a class is committed again."""
    City.commit()
    assert found(City, 'orm_cached', target='app') == ['members', 'mixed', 'secrets', 'user']


def test_listings_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The log of a commit has each directive once for each class, and no listing."""
    caplog.set_level('DEBUG', logger='morepath.directive')
    City.commit()
    names = [record.name.rpartition('.')[2] for record in caplog.records]
    assert 'setting_section' in names
    assert not [name for name in names if 'listing' in name]
    said = [record.message for record in caplog.records if "name='secrets'" in record.message]
    assert [message.split('.orm_cached(')[0].rpartition('.')[2] for message in said] == [
        'Town', 'City'
    ]  # fmt: skip


def test_an_app_that_inherits_by_two_ways() -> None:
    """A property of two base classes is listed once."""

    class Left(Town):
        pass

    class Right(Town):
        pass

    class Both(Left, Right):
        pass

    Both.commit()
    assert found(Both, 'orm_cached') == ALL


@pytest.mark.parametrize(
    ('filters', 'names'),
    [
        ({'name': 'members'}, ['members']),
        ({'name': 'nothing'}, []),
        ({'target': 'request'}, ['documents', 'titles']),
        ({'by_role': 'True'}, ['documents']),
        ({'frozen': 'True'}, ['members']),
        ({'frozen': 'True', 'by_role': 'True'}, []),
        ({'policy': 'auto'}, ['mixed']),
        ({'policy': 'on-table-change:users,groups'}, ['members']),
        ({'policy': f'{__name__}.only_secret'}, ['secrets']),
        ({'policy': 'tests.support.models.Group'}, ['user']),
        ({'table': 'users'}, ['changed', 'members', 'user']),
        ({'table': 'groups'}, ['members', 'user']),
        ({'table': 'documents'}, ['documents', 'titles']),
        ({'table': 'nothing'}, []),
        ({'no_such_filter': 'x'}, []),
    ],
    ids=repr,
)
def test_filters(filters: dict[str, str], names: list[str]) -> None:
    """The tool's filters choose by name, target, policy, table and options."""
    assert found(Town, 'orm_cached', **filters) == names


def test_filters_of_request_cached_properties() -> None:
    """These can be chosen by name, target and `merge`."""
    assert found(Town, 'request_cached', merge='True') == ['first']
    assert found(Town, 'request_cached', merge='False') == ['organisation']


def test_a_filter_that_can_not_be_read_is_an_error() -> None:
    """The tool says so, as for Morepath's own directives."""
    with pytest.raises(ToolError, match='Cannot convert bool'):
        found(Town, 'orm_cached', frozen='maybe')


def test_queries_take_objects_and_give_attributes() -> None:
    """A program names a class by itself, and reads names and policies."""
    query = dectate.Query('orm_cached').filter(policy=Group)
    (attributes,) = query.attrs('name', 'table', 'policy')(Town)
    assert attributes['name'] == 'user'
    assert attributes['table'] == {'users', 'groups'}
    assert attributes['policy'][1] is Group
    assert list(query.obj()(Town)) == [vars(Town)['user'].creator]


def test_each_says_where_it_is_declared() -> None:
    """File, line and text are those of the declaration, be it a directive or a decorator."""
    lines = inspect.getsource(sys.modules[__name__]).splitlines()
    for kind in ('orm_cached', 'request_cached'):
        for action, _ in dectate.Query(kind)(City):
            info = action.code_info
            assert info is not None
            assert info.path == __file__
            assert lines[info.lineno - 1].strip() == info.sourceline
            assert kind in info.sourceline


def test_a_creator_without_a_file_is_listed() -> None:
    """A creator that is no function of a file has no line, and its property is listed all the
    same."""

    class Callable:
        __name__ = 'made'

        def __call__(self, app: Any) -> int:
            return 1

    class Made(OrmCacheApp):
        made = orm_cached(policy='auto')(Callable())

    configured(Made).commit()
    ((action, _),) = dectate.Query('orm_cached')(Made)
    assert (action.name, action.code_info.lineno) == ('made', 0)


def test_cached_views_are_found() -> None:
    """`cached=True` finds the views whose responses are cached, by whichever option. Each
    directive lists the views of all, as Morepath has it."""

    class Site(OrmCacheApp):
        pass

    @Site.path(path='')
    class Root:
        pass

    names = {'plain': False, 'usual': True, 'public': cached(public=True)}
    for name, option in names.items():
        Site.html(model=Root, name=name, cached=option)(lambda self, request: '')
    configured(Site).commit()

    def found_views(directive: str, **filters: str) -> list[str]:
        actions = [action for action, _ in dectate.query_app(Site, directive, **filters)]
        return [action.predicates.get('name', '') for action in actions]

    for directive in ('view', 'html', 'json'):
        assert found_views(directive, cached='True') == ['usual', 'public']
        assert found_views(directive, cached='False') == ['plain']
        assert found_views(directive, name='usual') == ['usual']


def test_mounted_apps_have_lists_of_their_own() -> None:
    """A mounted app lists what it has, and not what its root has."""

    class Wiki(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def authors(self) -> Any:
            return None

    class Root(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def users(self) -> Any:
            return None

    @Root.mount(path='wiki', app=Wiki)
    def mount_wiki() -> morepath.App:
        return Wiki()

    configured(Root).commit()
    assert (found(Root, 'orm_cached'), found(Wiki, 'orm_cached')) == (['users'], ['authors'])


PROGRAM = """
import dectate
from tests.web.test_listings import City

dectate.query_tool([City])
"""


def test_the_query_tool(tmp_path: Path) -> None:
    """A program of three lines prints where the properties of a table are."""
    (tmp_path / 'query.py').write_text(PROGRAM, encoding='utf-8')
    done = subprocess.run(
        [sys.executable, str(tmp_path / 'query.py'), 'orm_cached', 'table=groups'],
        cwd=ROOT,
        env={'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ''
    first, where, line = (each.strip() for each in done.stdout.splitlines()[:3])
    assert first.endswith("test_listings.City'>")
    assert where.startswith(f'File "{__file__}", line ')
    assert line == '@orm_cached(policy=[rows(User.id), Group])'
