"""Settings from a file of YAML, by `App.init_settings`: what texts name, and which value wins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import NullPool

from onegov_ormcache import OrmCache, OrmCacheApp, OrmCacheMiddleware, orm_cached
from onegov_ormcache import errors as e
from tests.functional.plain import configured
from tests.support.models import Base

#: A part of each password.
SECRET = 'hush'

ROOT = Path(__file__).parent.parent.parent

#: A module that settings name objects of.
MODULE = """
from dataclasses import dataclass
from enum import Enum
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class More(DeclarativeBase):
    pass

class User(Base):
    __tablename__ = 'users'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

class Rules:
    @staticmethod
    def veto(request, response):
        return response.status_code == 418

@dataclass
class Point:
    x: int

class Colour(Enum):
    RED = 1

def never(request):
    return False
"""


def new_app() -> type[OrmCacheApp]:
    """Return an app class without settings."""

    class Town(OrmCacheApp):
        """The class of one test."""

    return Town


def settings_of(text: str, app_class: type[OrmCacheApp] | None = None) -> Any:
    """Return the settings of an app class that has those of a YAML file."""
    app_class = app_class or new_app()
    app_class.init_settings(yaml.safe_load(text))
    app_class.commit()
    return app_class.read_settings()


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the settings name, imported by its first use."""
    name = f'town_of_{tmp_path.name}'
    (tmp_path / f'{name}.py').write_text(MODULE, encoding='utf-8')
    (tmp_path / f'{name}_broken.py').write_text(f'raise OSError({SECRET!r})', encoding='utf-8')
    (tmp_path / f'{name}_needy.py').write_text('import no_such_library', encoding='utf-8')
    monkeypatch.syspath_prepend(tmp_path)
    return name


# what is read


def test_numbers_none_and_lists_are_as_yaml_gives_them() -> None:
    """Numbers, booleans, None, lists and texts need no conversion."""
    settings = settings_of("""
        orm_cache:
          dsn: sqlite:///somewhere
          redis_url:
          namespace: town
          expiration_time: 3600
          shared_lifetime: null
          process_cache_size: 1_000_000
          release: '1.2'
          redis_timeout: 0.25
          lazy: yes
          audit: error
          surrogate_keys: [Cache-Tag, Surrogate-Key]
          surrogate_secret: 0123456789abcdef0123456789abcdef
          attempts: 3
          engine_options: {pool_size: 3, connect_args: {prepare_threshold: null}}
    """)
    assert settings.expiration_time == 3600
    assert settings.redis_url is settings.shared_lifetime is None
    assert settings.process_cache_size == 1_000_000
    assert (settings.lazy, settings.redis_timeout, settings.attempts) == (True, 0.25, 3)
    assert settings.surrogate_keys == ['Cache-Tag', 'Surrogate-Key']
    assert settings.engine_options == {'pool_size': 3, 'connect_args': {'prepare_threshold': None}}


def test_off_without_quotes_is_a_value_of_audit() -> None:
    """YAML reads `off` as False; the setting is 'off' all the same."""
    assert settings_of('orm_cache: {audit: off}').audit == 'off'


def test_texts_name_objects(town: str) -> None:
    """Bases, types, functions and classes of the engine are found by their paths."""
    settings = settings_of(f"""
        orm_cache:
          base: ['{town}:Base', '{town}:More.metadata']
          types: ['{town}:Point', '{town}:Colour']
          commit_veto: '{town}:Rules.veto'
          cached_responses: '{town}:never'
          engine_options: {{poolclass: 'sqlalchemy.pool:NullPool', isolation_level: 'a:b'}}
    """)
    module = sys.modules[town]
    assert settings.base == [module.Base, module.More.metadata]
    assert settings.types == [module.Point, module.Colour]
    assert settings.commit_veto is module.Rules.veto
    assert settings.cached_responses is module.never
    assert settings.engine_options == {'poolclass': NullPool, 'isolation_level': 'a:b'}


def test_an_application_runs_with_the_settings_of_a_file(town: str, tmp_path: Path) -> None:
    """The tables are those of the base that a text names, and the data is where the file says."""

    class Town(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def names(self) -> Any:
            return self.session().query(sys.modules[town].User.name)

    Town.init_settings({'orm_cache': {'base': f'{town}:Base', 'dsn': f'sqlite:///{tmp_path}/data'}})
    app = Town()
    OrmCacheMiddleware(app, schema='main')
    try:
        with app.request_scope('main'):
            app.session().add(sys.modules[town].User(name='Ada'))
            app.session().commit()
            assert [row.name for row in app.names] == ['Ada']
    finally:
        app.close_orm_cache()
    assert (tmp_path / 'data' / 'main.sqlite').exists()


def test_paths_work_without_morepath(town: str, tmp_path: Path) -> None:
    """The core reads its settings alike."""
    cache = OrmCache(base=f'{town}:Base', types=[f'{town}:Point'], dsn=f'sqlite:///{tmp_path}/x')
    with closing(cache):
        assert cache.settings.base is sys.modules[town].Base
        assert list(cache.settings.types) == [sys.modules[town].Point]


PROGRAM = """
from onegov_ormcache import OrmCacheApp
from sqlalchemy.orm import DeclarativeBase

print('run')

class Base(DeclarativeBase):
    pass

class Town(OrmCacheApp):
    pass

Town.init_settings({'orm_cache': {'base': 'program:Base'}})
Town.commit()
print(Town.read_settings().base is Base)
"""


@pytest.mark.parametrize('command', [['program.py'], ['-m', 'program']], ids=' '.join)
def test_the_running_program_is_not_run_again(command: list[str], tmp_path: Path) -> None:
    """A path to the file that is run means the objects of this run: it has one Base, not two."""
    (tmp_path / 'program.py').write_text(PROGRAM, encoding='utf-8')
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.split(), done.stderr) == (['run', 'True'], '')


# what is refused


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        ("base: 'TOWN.Base'", "base is 'TOWN.Base'; a text here is the path of an object"),
        ("base: 'TOWN:'", "base is 'TOWN:'; a text"),
        ("base: ':Base'", "base is ':Base'; a text"),
        ("base: 'TOWN:Base()'", 'a text'),
        ("base: ''", "base is ''; a text"),
        ("base: 'no_such_town:Base'", "'no_such_town:Base': there is no module 'no_such_town'"),
        ("base: 'TOWN.models:Base'", "there is no module 'TOWN.models'"),
        ("base: 'TOWN:Bsae'", "the module 'TOWN' has no 'Bsae'"),
        ("base: 'TOWN:Base.nothing'", "the module 'TOWN' has no 'Base.nothing'"),
        ("base: 'TOWN_broken:Base'", "importing 'TOWN_broken' raised OSError"),
        ("base: 'TOWN_needy:Base'", "importing 'TOWN_needy' failed: No module named 'no_such_lib"),
        ("types: ['TOWN:Point', 'TOWN:Piont']", "types is 'TOWN:Piont': the module 'TOWN' has no"),
        ("types: ['TOWN:never']", 'types is .*expected a sequence of classes'),
        ("commit_veto: 'TOWN'", "commit_veto is 'TOWN'; a text here is the path"),
        ("commit_veto: 'TOWN:__name__'", 'expected a function'),
        ('engine_options: {poolclass: hush}', 'engine_options.poolclass is not shown; a text'),
        ('release: 1.2', 'release is 1.2; expected a string'),
        ('redis_url: {host: hush}', 'redis_url is of the type dict, and not shown'),
        ('on: 1', 'a setting True; expected names that are texts'),
        ('1: 1', 'a setting 1; expected names'),
    ],
)
def test_a_wrong_value_is_an_error(line: str, told: str, town: str) -> None:
    """The error names setting, text and reason, and shows no password."""
    with pytest.raises(e.ConfigurationError, match=told.replace('TOWN', town)) as raised:
        settings_of('orm_cache:\n  ' + line.replace('TOWN', town))
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize('text', ['', 'town', '- orm_cache'])
def test_a_file_without_sections_is_an_error(text: str) -> None:
    """An empty file is not taken for the defaults: they would keep a town's data elsewhere."""
    with pytest.raises(e.ConfigurationError, match=r'Town.init_settings: .*dictionary'):
        settings_of(text)


@pytest.mark.parametrize('text', ['orm_cache:', 'orm_cache: town', 'orm_cache: [1]', 'other:'])
def test_a_section_without_settings_is_an_error(text: str) -> None:
    """The error names the file and line that gave the section."""
    with pytest.raises(e.ConfigurationError, match=r'test_settings_files.py", line .*section'):
        settings_of(text)


def test_a_decorated_function_without_settings_is_an_error() -> None:
    """A function that returns nothing is told by its file and line."""
    town = new_app()
    town.setting_section(section='orm_cache')(lambda: None)
    with pytest.raises(e.ConfigurationError, match=r'test_settings_files.py", line .*NoneType'):
        town.commit()


def test_settings_that_come_too_late_are_an_error() -> None:
    """After the commit nobody would notice them. Other sections are Morepath's business."""
    town = configured(new_app())
    town.commit()
    with pytest.raises(e.ConfigurationError, match='committed already'):
        town.init_settings({'orm_cache': {'namespace': 'late'}})
    town.init_settings({'town': {'name': 'late'}})


# who wins


def by_file(app_class: type[OrmCacheApp], **settings: Any) -> None:
    app_class.init_settings({'orm_cache': settings})


def by_decorator(app_class: type[OrmCacheApp], **settings: Any) -> None:
    app_class.setting_section(section='orm_cache')(lambda: settings)


Give = Callable[..., None]
WAYS = pytest.mark.parametrize('first', [by_file, by_decorator])
OTHERS = pytest.mark.parametrize('second', [by_file, by_decorator])


@WAYS
@OTHERS
def test_a_subclass_overrides_its_base(first: Give, second: Give) -> None:
    """What a subclass is given counts, setting by setting, whichever way either was given."""
    town = new_app()
    first(town, namespace='base', lease=5)

    class Sub(town):  # type: ignore[misc, valid-type]
        pass

    second(Sub, namespace='sub')
    Sub.commit()
    settings = Sub.read_settings()
    assert (settings.namespace, settings.lease) == ('sub', 5)
    town.commit()
    assert town.read_settings().namespace == 'base'


@WAYS
@OTHERS
def test_one_class_has_each_setting_once(first: Give, second: Give) -> None:
    """Two values for one class are an error that names both places and shows neither."""
    town = new_app()
    first(town, dsn='sqlite:///hush', lease=5)
    second(town, dsn='sqlite:///hush', attempts=2)
    told = r'Town: setting orm_cache.dsn is given twice: File ".*test_settings_files.py", line .*'
    with pytest.raises(e.ConfigurationError, match=told + ' and File') as raised:
        town.commit()
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


@WAYS
@OTHERS
def test_one_class_may_have_its_settings_from_two_places(first: Give, second: Give) -> None:
    """Different settings of one class add up: objects in the program, addresses in the file."""
    town = new_app()
    first(town, base=Base)
    second(town, namespace='town')
    town.commit()
    settings = town.read_settings()
    assert (settings.base, settings.namespace) == (Base, 'town')


def test_an_instance_overrides_its_class() -> None:
    """`orm_cache_settings` of an app counts before the settings of its class."""

    class Hosted(new_app()):  # type: ignore[misc]
        orm_cache_settings = {'namespace': 'instance'}

    Hosted.init_settings({'orm_cache': {'namespace': 'file', 'lease': 7}})
    app = Hosted()
    app.commit()
    assert (app.own_settings().namespace, app.own_settings().lease) == ('instance', 7)
