"""The plugin for pytest: it is loaded by itself, costs nothing, and its fixtures clean up."""

from __future__ import annotations

import subprocess
import sys

import pytest

TESTS = """
    import pytest
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

    from onegov_ormcache import OrmCacheApp, orm_cached
    from onegov_ormcache.testing import assert_cached, assert_evicted_by, creator_runs

    class Base(DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = 'users'
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def users(self):
            return self.session().query(User.name)

    App.setting_section(section='orm_cache')(lambda: {'base': Base})

    class Users:
        @orm_cached(policy=User)
        def users(self):
            return self.orm_cache.session().query(User.name)

    opened = []

    @pytest.mark.parametrize('attempts', [1, 2])
    def test_app(ormcache_app, attempts):
        app = ormcache_app(App, attempts=attempts)
        opened.append(app)
        assert app.orm_cache.settings.attempts == attempts
        with app.request_scope('main') as scope:
            assert app.users == ()  # of the test before, nothing is left
            app.session().add(User(name='Ada'))
            scope.commit()

    def test_two_apps(ormcache_app):
        one, two = ormcache_app(App), ormcache_app(App)
        with one.request_scope('main') as scope, creator_runs(one) as runs:
            scope.session().add(User(name='Ada'))
            scope.commit()
            assert one.users == (('Ada',),)
            assert runs['users'] == 1
        with two.request_scope('main'):
            assert two.users == ()

    def test_cache(ormcache, monkeypatch):
        cache = ormcache(base=Base, namespace='mine')
        opened.append(cache)
        monkeypatch.setattr(Users, 'orm_cache', cache, raising=False)
        with cache.scope('main'):
            assert Users().users == ()
        assert_cached(Users(), 'users', schema='main')

    def test_all_are_closed():
        from onegov_ormcache.errors import CacheClosedError

        assert [app.is_orm_cache_setup for app in opened[:2]] == [False, False]
        with pytest.raises(CacheClosedError):
            opened[2].scope('main').__enter__()

    def test_failing(ormcache_app):
        ormcache_app(App)
        raise ZeroDivisionError

    def test_wrong(ormcache_app):
        ormcache_app(Users)
"""


def test_fixtures(pytester: pytest.Pytester) -> None:
    """Applications and caches have folders and settings of their own, and are closed after each
    test, also after one that fails."""
    pytester.makepyfile(TESTS)
    result = pytester.runpytest('-p', 'no:cacheprovider')
    result.assert_outcomes(passed=5, failed=2)
    result.stdout.fnmatch_lines(
        ['*ConfigurationError: expected a class derived from OrmCacheApp, and not *Users*']
    )


def test_a_failed_assertion_shows_the_test(pytester: pytest.Pytester) -> None:
    """The traceback ends in the test, and not in the kit."""
    pytester.makepyfile(
        TESTS.split('    opened = []')[0]
        + """
    def test_cached(ormcache_app):
        app = ormcache_app(App)
        with app.request_scope('main'):
            assert_cached(app, 'users')

    def test_evicted(ormcache_app):
        app = ormcache_app(App)
        with app.request_scope('main'):
            with assert_evicted_by(app, 'users'):
                pass
    """
    )
    result = pytester.runpytest('-p', 'no:cacheprovider')
    result.assert_outcomes(failed=2)
    text = result.stdout.str()
    assert 'is not cached: no tier has it' in text
    assert 'was not evicted.' in text
    assert 'raise AssertionError' not in text


def test_plugin_costs_nothing(pytester: pytest.Pytester) -> None:
    """It is loaded without being asked for, warns of nothing, and imports neither SQLAlchemy nor
    Morepath before a test uses it."""
    pytester.makepyfile(
        """
    import sys

    def test_modules(pytestconfig):
        assert pytestconfig.pluginmanager.has_plugin('onegov_ormcache')
        for name in ('sqlalchemy', 'morepath', 'redis', 'onegov_ormcache.core'):
            assert name not in sys.modules
    """
    )
    result = pytester.runpytest_subprocess('-p', 'no:cacheprovider', '-W', 'error')
    result.assert_outcomes(passed=1)


def test_fixtures_are_described(pytester: pytest.Pytester) -> None:
    """`pytest --fixtures` says what each is for."""
    result = pytester.runpytest('--fixtures')
    result.stdout.fnmatch_lines_random(
        ['ormcache_app -- *', '*Opens applications on the embedded default: *', 'ormcache -- *']
    )


@pytest.mark.parametrize('absent', ['pytest', 'morepath'])
def test_kit_without(absent: str) -> None:
    """The kit works where pytest, or Morepath, is not installed."""
    code = (
        f'import sys; sys.modules[{absent!r}] = None\n'
        'from sqlalchemy import MetaData\n'
        'from onegov_ormcache.testing import *\n'
        'with open_cache(base=MetaData()) as cache, cache.scope("main"), db_queries(0):\n'
        '    with disabled(cache), recording(cache), redis_ops(0), creator_runs(cache):\n'
        '        print("works")\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ('works\n', '')
