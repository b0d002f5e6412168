"""Applications for one test: on the embedded default, with settings of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onegov_ormcache import OrmCache, OrmCacheApp
from onegov_ormcache.errors import CacheClosedError, ConfigurationError, SecondProcessError
from onegov_ormcache.testing import assert_cached, open_app, open_cache
from tests.core.plain_objects import Names
from tests.support.backends import Backend
from tests.support.models import Base, User

from .kit_site import SETTINGS, Site


def test_an_app_needs_no_server(tmp_path: Path) -> None:
    """An app whose class names servers has none in a test, and is closed at its end."""
    with open_app(Site, tmp_path / 'tenants') as app:
        assert isinstance(app, Site)
        with app.request_scope('main'):
            assert app.users == ()
        assert app.orm_cache.settings.redis_url is None
        assert (tmp_path / 'tenants' / 'main.sqlite').exists()
    assert not app.is_orm_cache_setup


def test_settings_for_servers_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that SQLite would refuse are not taken from the class."""
    for name, value in {
        'listen': True,
        'listen_dsn': 'postgresql://nowhere.invalid/',
        'on_outage': 'outbox',
        'engine_options': {'connect_args': {'prepare_threshold': None}},
    }.items():
        monkeypatch.setitem(SETTINGS, name, value)
    with open_app(Site) as app, app.request_scope('main'):
        assert app.users == ()


def test_a_folder_that_nobody_names_is_removed() -> None:
    """Without a folder the files are gone after the block."""
    with open_app(Site) as app:
        folder = Path(app.orm_cache.settings.dsn.removeprefix('sqlite:///'))
        assert folder.exists()
    assert not folder.exists()


def test_an_app_of_servers(servers_backend: Backend, tenant: str) -> None:
    """An app whose test names servers uses them."""
    with open_app(Site, **servers_backend.settings) as app:
        with app.request_scope(tenant):
            assert app.users == ()
        assert not app.orm_cache.tags.single_process


def test_values_have_the_keys_of_the_class() -> None:
    """The derived class has the same name, so what the test says of names is what is true."""
    with open_app(Site) as app:
        assert type(app) is not Site
        assert f'{Site.__module__}.Site.users' in app.orm_cache.registry.names


def test_settings_of_one_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that is given, that the class's function finds patched, or that it reads from the
    environment, is that of this app alone, though its class was committed before."""
    Site.commit()
    with open_app(Site) as app:
        assert (app.orm_cache.settings.attempts, app.orm_cache.settings.namespace) == (10, 'site')
    with monkeypatch.context() as patch:
        patch.setitem(SETTINGS, 'attempts', 3)
        patch.setenv('SITE_NAMESPACE', 'patched')
        with open_app(Site, release='r2') as app:
            used = app.orm_cache.settings
            assert (used.attempts, used.namespace, used.release) == (3, 'patched', 'r2')
    with open_app(Site) as app:
        used = app.orm_cache.settings
        assert (used.attempts, used.namespace, used.release) == (10, 'site', '')


def test_wrong_settings_are_refused() -> None:
    """An unknown setting, and a wrong value, are the errors of the package."""
    with pytest.raises(ConfigurationError, match="unknown setting 'atempts'"):
        open_app(Site, atempts=1).__enter__()
    with pytest.raises(ConfigurationError, match=r'orm_cache.attempts is 0'):
        open_app(Site, attempts=0).__enter__()
    with pytest.raises(ConfigurationError, match="unknown setting 'atempts'"):
        open_cache(base=Base, atempts=1).__enter__()


@pytest.mark.parametrize('wrong', [None, Site, OrmCache, dict])
def test_what_is_no_app_class_is_refused(wrong: Any) -> None:
    """Anything but a class of applications is an error that says what to do."""
    given = Site() if wrong is Site else wrong
    with pytest.raises(ConfigurationError, match=r'derived from OrmCacheApp.*open_cache'):
        open_app(given).__enter__()


def test_a_failing_test_closes_its_app(tmp_path: Path) -> None:
    """After an error in the block the database is free for the next app."""
    with pytest.raises(ZeroDivisionError), open_app(Site, tmp_path):
        1 / 0
    with open_app(Site, tmp_path), pytest.raises(SecondProcessError):
        open_app(Site, tmp_path).__enter__()


def test_a_cache_without_morepath(tmp_path: Path) -> None:
    """A cache has a folder of its own too, and is closed at the end."""
    with open_cache(tmp_path, base=Base) as cache:
        names = Names(cache)
        with cache.scope('main') as scope:
            scope.session().add(User(name='Ada'))
            scope.commit()
            assert names.users == (('Ada',),)
        assert_cached(names, 'users', schema='main')
    with pytest.raises(CacheClosedError):
        cache.scope('main').__enter__()


def test_a_mounted_class_is_left_alone() -> None:
    """The class itself keeps its configuration, and its own settings."""
    with open_app(Site, release='r2'):
        pass
    Site.commit()
    assert Site.read_settings().release == ''
    assert issubclass(Site, OrmCacheApp)
