"""The application class: how properties are declared, installed, overridden and found."""

from __future__ import annotations

import time
from enum import Enum
from typing import Any

import morepath
import pytest
from blinker import Signal
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from webtest import TestApp as Client

from onegov_ormcache import (
    OrmCacheApp,
    OrmCacheDescriptor,
    OrmCacheMiddleware,
    SessionManager,
    orm_cached,
    request_cached,
)
from onegov_ormcache.errors import (
    AuditError,
    ConfigurationError,
    PropertyError,
    ValueNotCacheable,
    VariantError,
)
from tests.support.applications import Applications, change, committed, value
from tests.support.counting import Runs
from tests.support.models import Base, Document, Group, Letter, User


class Root:
    """The model at /."""


def user_count(app: Any) -> int:
    return int(app.session().query(User).count())


# how properties are declared


def test_directives_of_all_kinds(applications: Applications, tenant: str, runs: Runs) -> None:
    """Directives install properties on the app and the request, by the function's name or
    a given one, and leave the function as it is."""

    class App(OrmCacheApp):
        pass

    @App.orm_cached(policy='on-table-change:users')
    def names(app: Any) -> Any:
        runs('names')
        return app.session().query(User.name)

    @App.orm_cached(policy='on-table-change:users', name='total', target='request')
    def count_all(request: Any) -> int:
        runs('total')
        return user_count(request.app)

    @App.request_cached(name='organisation')
    def load_organisation(app: Any) -> Any:
        runs('organisation')
        return app.session().query(User).first()

    @App.request_cached(target='request')
    def path_words(request: Any) -> list[str]:
        runs('path_words')
        return list(request.path.split('/'))

    App.path(path='')(Root)

    @App.json(model=Root)
    def view(self: Root, request: Any) -> Any:
        for _ in range(2):
            answer = {
                'names': [row.name for row in request.app.names],
                'total': request.total,
                'organisation': request.app.organisation.name,
                'words': request.path_words,
            }
        return answer

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    expected = {'names': ['a'], 'total': 1, 'organisation': 'a', 'words': ['', '']}
    for _ in range(3):
        assert client.get('/').json == expected
    counted = {n: runs.count(n) for n in ('names', 'total', 'organisation', 'path_words')}
    assert counted == {'names': 1, 'total': 1, 'organisation': 3, 'path_words': 3}
    assert names.__name__ == 'names'
    assert not hasattr(App, 'count_all')
    assert isinstance(app.__class__.names, OrmCacheDescriptor)


def test_properties_made_in_a_loop(applications: Applications, tenant: str) -> None:
    """One function under several names is several properties."""

    class App(OrmCacheApp):
        pass

    for number in range(3):
        App.orm_cached(policy='on-table-change:users', name=f'p{number}')(
            lambda app, number=number: number
        )
    app = applications.start(App)
    for _ in range(2):
        assert value(app, tenant, lambda app: (app.p0, app.p1, app.p2)) == (0, 1, 2)


POLICIES: dict[str, Any] = {
    'table': 'on-table-change:users',
    'tables': 'on-table-change:groups, users',
    'class': User,
    'function': lambda obj: isinstance(obj, User),
    'auto': 'auto',
    'list': ['on-table-change:groups', User],
    'list of lists': [['on-table-change:groups'], [lambda obj: isinstance(obj, User)]],
}


@pytest.mark.parametrize('kind', POLICIES)
def test_policies_of_all_kinds(
    applications: Applications, tenant: str, runs: Runs, kind: str
) -> None:
    """Every kind of policy evicts by a change of its table and not by one of another."""

    class App(OrmCacheApp):
        @orm_cached(policy=POLICIES[kind])
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = applications.start(App)
    other = applications.elsewhere(app)
    assert value(app, tenant, lambda app: app.count) == 0
    assert value(other, tenant, lambda app: app.count) == 0
    change(app, tenant, Document(kind='document', title='unrelated'))
    assert value(other, tenant, lambda app: app.count) == 0
    assert runs.count('count') == 1
    change(app, tenant, User(name='a'))
    assert value(other, tenant, lambda app: app.count) == 1
    assert value(app, tenant, lambda app: app.count) == 1
    assert runs.count('count') == 2


def test_policy_of_an_inherited_class(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A mapped class stands for the tables it inherits, too."""

    class App(OrmCacheApp):
        @orm_cached(policy=Letter)
        def letters(self) -> Any:
            runs('letters')
            return self.session().query(Letter.title)

    app = applications.start(App)
    change(app, tenant, Letter(title='a', address='here'))
    value(app, tenant, lambda app: app.letters)
    with committed(app, tenant) as scope:
        scope.session().query(Letter).one().title = 'b'
    assert value(app, tenant, lambda app: [row.title for row in app.letters]) == ['b']


def test_query_and_select_are_fetched(applications: Applications, tenant: str) -> None:
    """A creator may return a query or a select: both are fetched whole, as tuples of rows."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def query(self) -> Any:
            return self.session().query(User.id, User.name).order_by(User.id)

        @orm_cached(policy=User)
        def selected(self) -> Any:
            return select(User.id, User.name).order_by(User.id)

    app = applications.start(App)
    change(app, tenant, User(id=1, name='a'), User(id=2, name='b'))
    for _ in range(2):
        with app.request_scope(tenant):
            for rows in app.query, app.selected:
                assert rows == ((1, 'a'), (2, 'b'))
                assert type(rows) is tuple
                assert rows[0].name == 'a'
                assert rows[0][1] == 'a'
                assert dict(rows[1]._mapping) == {'id': 2, 'name': 'b'}


def test_by_role(applications: Applications, tenant: str, runs: Runs) -> None:
    """Each role sees a value of its own; None and 'None' are two roles."""

    class App(OrmCacheApp):
        pass

    class Identity:
        def __init__(self, role: Any) -> None:
            self.role = role

    @App.orm_cached(policy='on-table-change:users', by_role=True, target='request')
    def tree(request: Any) -> Any:
        runs('tree')
        return [request.identity.role]

    app = applications.start(App)
    for _ in range(2):
        for role in None, 'None', '', 'admin':
            with app.request_scope(tenant):
                request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
                vars(request)['identity'] = Identity(role)
                assert request.tree == [role]
    assert runs.count('tree') == 4


def test_request_cached_lives_as_long_as_the_scope(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A request-cached value is one and the same object, over commits, until the scope ends."""

    class App(OrmCacheApp):
        @request_cached
        def first(self) -> Any:
            runs('first')
            return self.session().query(User).order_by(User.id).first()

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    with app.request_scope(tenant) as scope:
        first = app.first
        first.name = 'b'
        assert app.first is first
        scope.session().commit()
        assert app.first is first
        assert app.first.name == 'b'
        scope.session().rollback()
        assert app.first is first
    assert value(app, tenant, lambda app: app.first.name) == 'b'
    assert runs.count('first') == 2


# properties inside properties


def test_dependencies_are_inherited(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """What a creator reads of other properties, at any depth, evicts it as well."""

    class App(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def users(self) -> int:
            return user_count(self)

        @request_cached
        def groups(self) -> int:
            return int(self.session().query(Group).count())

        @orm_cached(policy='on-table-change:documents')
        def both(self) -> Any:
            return [self.users, self.groups]

        @orm_cached(policy='auto')
        def all(self) -> Any:
            runs('all')
            return [*self.both, self.session().query(Letter).count()]

    app = applications.start(App)
    other = applications.elsewhere(app)
    assert value(app, tenant, lambda app: app.all) == [0, 0, 0]
    assert value(other, tenant, lambda app: app.all) == [0, 0, 0]
    assert runs.count('all') == 1
    change(app, tenant, User(name='a'))
    assert value(other, tenant, lambda app: app.all) == [1, 0, 0]
    change(app, tenant, Group(name='a'))
    assert value(other, tenant, lambda app: app.all) == [1, 1, 0]
    change(app, tenant, Letter(title='a', address='b'))
    assert value(other, tenant, lambda app: app.all) == [1, 1, 1]


def test_creators_get_fresh_copies(applications: Applications, tenant: str) -> None:
    """What a view did to its copy of a value is not stored within another for all."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def inner(self) -> Any:
            return [1]

        @orm_cached(policy=User)
        def outer(self) -> Any:
            return [self.inner]

    app = applications.start(App)
    with app.request_scope(tenant):
        app.inner.append(2)
        assert app.outer == [[1]]
        assert app.inner == [1, 2]
    assert value(app, tenant, lambda app: app.outer) == [[1]]


def test_auto_that_can_not_be_known_is_not_stored(
    applications: Applications, tenant: str, runs: Runs, caplog: Any
) -> None:
    """A run that read nothing, a function or an unknown relation is not stored, and that is
    said once, with the reason."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def nothing(self) -> int:
            runs('nothing')
            return 1

        @orm_cached(policy='auto')
        def strange(self) -> Any:
            runs('strange')
            on_postgres = self.session().get_bind().name == 'postgresql'
            name = 'pg_class' if on_postgres else 'sqlite_master'
            return bool(self.session().execute(text(f'SELECT 1 FROM {name}')).first())

    app = applications.start(App)
    for _ in range(3):
        value(app, tenant, lambda app: (app.nothing, app.strange))
    assert (runs.count('nothing'), runs.count('strange')) == (3, 3)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert 'nothing is not stored: it read no table' in messages[0]
    assert 'no table of the metadata' in messages[1]


#: Reads a table; its names are like others of the database or of sqlglot.
READING = """
CREATE FUNCTION {}(wanted int) RETURNS text STABLE LANGUAGE plpgsql AS
    'BEGIN RETURN (SELECT title FROM documents WHERE owner_id = wanted); END'
"""
FUNCTIONS = (
    *map(READING.format, ('title_of', 'users', 'current_title', 'space')),
    "CREATE FUNCTION doubled(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * n'",
    """CREATE FUNCTION add_title(state text, id int) RETURNS text STABLE LANGUAGE sql AS
    'SELECT state || title_of(id)'""",
    'CREATE AGGREGATE titles(int) (SFUNC = add_title, STYPE = text)',
)


@pytest.mark.parametrize(
    ('query', 'is_stored'),
    [
        ('SELECT title_of(id) FROM users', False),
        ('SELECT id FROM users WHERE title_of(id) IS NOT NULL', False),
        ('SELECT id FROM users ORDER BY coalesce(title_of(id), name)', False),
        ('WITH t AS (SELECT {schema}.title_of(id) FROM users) SELECT * FROM t', False),
        ('SELECT users(id) FROM users', False),
        ('SELECT current_title(id), space(id) FROM users', False),
        ('SELECT titles(id) FROM users', False),
        ("SELECT (SELECT count(*) FROM ts_stat('SELECT NULL::tsvector')) FROM users", False),
        ('SELECT doubled(id) FROM users', True),
        ('SELECT width_bucket(id, 0, 9, 3), num_nonnulls(name) FROM users', True),
        ('SELECT count(*), max(id), min(CAST(id AS text)) FROM users', True),
    ],
)
def test_auto_that_calls_functions(
    on_servers: Applications, tenant: str, runs: Runs, caplog: Any, query: str, is_stored: bool
) -> None:
    """What a function reads is not known, wherever it is called: the run is not stored, if it
    may read at all."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            return self.session().execute(text(query.format(schema=tenant))).all()

    app = on_servers.start(App)
    with committed(app, tenant) as scope:
        scope.session().add(User(id=1, name='a'))
        for function in FUNCTIONS:
            scope.session().connection().exec_driver_sql(function)
    for _ in range(3):
        value(app, tenant, lambda app: app.found)
    assert runs.count('found') == (1 if is_stored else 3)
    messages = [record.getMessage() for record in caplog.records if 'found' in record.getMessage()]
    assert len(messages) == (0 if is_stored else 1)
    assert is_stored or ('which may read any table' in messages[0] or 'ts_stat' in messages[0])


def test_auto_that_calls_a_function_that_is_replaced(
    on_servers: Applications, tenant: str, runs: Runs
) -> None:
    """A function that may read from now on is asked about anew."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            runs('found')
            return self.session().scalars(text('SELECT changing(id) FROM users')).all()

    app = on_servers.start(App)
    immutable = "CREATE FUNCTION changing(int) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'"
    for name, function in (('a', immutable), ('b', READING.format('changing'))):
        with committed(app, tenant) as scope:
            connection = scope.session().connection()
            connection.exec_driver_sql('DROP FUNCTION IF EXISTS changing(int)')
            connection.exec_driver_sql(function)
            scope.session().add(User(name=name))
        for _ in range(2):
            value(app, tenant, lambda app: app.found)
    assert runs.count('found') == 1 + 2


def test_auto_that_catches_a_failed_query(on_servers: Applications, tenant: str) -> None:
    """A creator may give something else if a query fails; that is not stored."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def found(self) -> Any:
            try:
                return self.session().scalars(text('SELECT no_such(id) FROM users')).all()
            except DBAPIError:
                return 'nothing'

    app = on_servers.start(App)
    change(app, tenant, User(name='a'))
    for _ in range(2):
        assert value(app, tenant, lambda app: app.found) == 'nothing'


def test_auto_knows_what_was_in_memory(applications: Applications, tenant: str) -> None:
    """An automatic property that reads from the session's memory depends on those tables."""

    class App(OrmCacheApp):
        @orm_cached(policy='auto')
        def name(self) -> Any:
            return self.session().get(User, 1).name

    app = applications.start(App)
    change(app, tenant, User(id=1, name='a'))
    with app.request_scope(tenant) as scope:
        user = scope.session().get(User, 1)  # kept in memory by this reference
        assert user is not None
        assert app.name == 'a'
    with committed(app, tenant) as scope:
        scope.session().get(User, 1).name = 'b'
    assert value(app, tenant, lambda app: app.name) == 'b'


# inheritance, mounting, several classes


def test_subclass_overrides_by_directive_and_body(
    applications: Applications, tenant: str
) -> None:
    """A subclass's property replaces its base's, by directive or class body, on itself alone."""

    class Basic(OrmCacheApp):
        @orm_cached(policy=User)
        def body(self) -> str:
            return 'base'

        @orm_cached(policy=User)
        def kept(self) -> str:
            return type(self).__name__

    Basic.orm_cached(policy=User, name='directed')(lambda app: 'base')
    Basic.orm_cached(policy=User, name='also', target='request')(lambda request: 'base')

    class Derived(Basic):
        @orm_cached(policy=User)
        def body(self) -> str:
            return 'derived'

    Derived.orm_cached(policy=User, name='directed')(lambda app: 'derived')
    Derived.orm_cached(policy=User, name='also', target='request')(lambda request: 'derived')

    seen = []
    for app_class in Basic, Derived, Basic:
        app = applications.start(app_class)
        with app.request_scope(tenant):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            seen.append((app.body, app.directed, app.kept, request.also))
        app.close_orm_cache()
    base = ('base', 'base', 'Basic', 'base')
    assert seen == [base, ('derived', 'derived', 'Derived', 'derived'), base]


def test_committing_twice_installs_once() -> None:
    """A second commit installs the same properties and reports no conflict."""

    class App(OrmCacheApp):
        pass

    App.orm_cached(policy=User, name='one')(lambda app: 1)
    App.orm_cached(policy=User, name='two', target='request')(lambda request: 2)
    for _ in range(2):
        App.commit()
        assert isinstance(App.one, OrmCacheDescriptor)
        assert isinstance(App.request_class.two, OrmCacheDescriptor)


def test_two_classes_in_one_process(applications: Applications, tenant: str) -> None:
    """Two app classes see neither each other's properties nor each other's requests'."""

    class One(OrmCacheApp):
        pass

    class Two(OrmCacheApp):
        pass

    One.orm_cached(policy=User, name='mine')(lambda app: 'one')
    One.orm_cached(policy=User, name='ours', target='request')(lambda request: 'one')
    Two.orm_cached(policy=User, name='mine')(lambda app: 'two')
    One.commit()
    Two.commit()
    assert not hasattr(Two.request_class, 'ours')
    assert not hasattr(morepath.Request, 'ours')
    assert not hasattr(OrmCacheApp, 'mine')
    seen = []
    for app_class in One, Two:
        app = applications.start(app_class)
        seen.append(value(app, tenant, lambda app: app.mine))
        app.close_orm_cache()
    assert seen == ['one', 'two']


def test_own_request_class(applications: Applications, tenant: str) -> None:
    """An app's own request class keeps its attributes and may have properties in its body."""

    class Request(morepath.Request):
        word = 'kept'

        @orm_cached(policy=User)
        def counted(self) -> int:
            return user_count(self.app)

        @request_cached
        def once(self) -> list[int]:
            return []

    class App(OrmCacheApp):
        request_class = Request

    app = applications.start(App)
    for _ in range(2):
        with app.request_scope(tenant):
            request = app.request({'PATH_INFO': '/', 'REQUEST_METHOD': 'GET'})
            assert isinstance(request, Request)
            assert (request.word, request.counted) == ('kept', 0)
            assert request.once is request.once
            with pytest.raises(AttributeError, match='nonsense'):
                request.nonsense
    assert [d.name for d in app.orm_cache_descriptors] == ['counted']


def test_mounted_app(applications: Applications, tenant: str, runs: Runs) -> None:
    """A mounted app's properties, and those of its requests, work and evict; its own come
    before the root app's of the same name."""

    class Town(OrmCacheApp):
        pass

    class Wiki(OrmCacheApp):
        def __init__(self, name: str) -> None:
            self.name = name

        @request_cached
        def title(self) -> str:
            return f'wiki {self.name}'

    for app_class in Town, Wiki:
        name = app_class.__name__

        def both(request: Any, name: str = name) -> Any:
            runs(name)
            return [name, user_count(request.app)]

        app_class.orm_cached(policy=User, name='both', target='request')(both)
        app_class.path(path='')(Root)
    Town.orm_cached(policy=User, name='towns', target='request')(lambda request: 'town')
    Wiki.orm_cached(policy=User, name='wikis', target='request')(lambda request: 'wiki')
    Wiki.orm_cached(policy=User, name='count')(lambda app: user_count(app))
    Town.mount(app=Wiki, path='/wiki/{name}')(lambda name: Wiki(name))

    @Town.json(model=Root)
    def town_view(self: Root, request: Any) -> Any:
        return [request.both, request.towns, hasattr(request, 'wikis')]

    @Wiki.json(model=Root)
    def wiki_view(self: Root, request: Any) -> Any:
        return [request.both, request.towns, request.wikis, request.app.count, request.app.title]

    @Wiki.json(model=Root, request_method='POST')
    def add(self: Root, request: Any) -> Any:
        request.app.session().add(User(name=request.params['name']))

    app = applications.start(Town)
    client = Client(OrmCacheMiddleware(app, schema=tenant))
    for _ in range(2):
        assert client.get('/').json == [['Town', 0], 'town', False]
        assert client.get('/wiki/a').json == [['Wiki', 0], 'town', 'wiki', 0, 'wiki a']
        assert client.get('/wiki/b').json == [['Wiki', 0], 'town', 'wiki', 0, 'wiki b']
    client.post('/wiki/a', {'name': 'x'})
    assert client.get('/').json == [['Town', 1], 'town', False]
    assert client.get('/wiki/a').json == [['Wiki', 1], 'town', 'wiki', 1, 'wiki a']
    assert (runs.count('Town'), runs.count('Wiki')) == (2, 2)


def test_root_app_must_own_the_cache(applications: Applications, tenant: str) -> None:
    """An OrmCacheApp mounted in an app that is none says what to do."""

    class Other(morepath.App):
        pass

    class Inner(OrmCacheApp):
        pass

    inner = applications.configure(Inner)()
    inner.parent = Other()
    with pytest.raises(ConfigurationError, match='Other must derive from OrmCacheApp'):
        inner.ensure_orm_cache()


# what a host may provide, and the seed's names


def test_defaults_of_host_attributes(applications: Applications, tenant: str) -> None:
    """The attributes that the seed read from its host have defaults, bound to the scope."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            return user_count(self)

    app = applications.start(App)
    assert isinstance(app.session_manager, SessionManager)
    with app.request_scope(tenant) as scope:
        assert app.schema == tenant
        assert app.session() is scope.session() is app.session_manager.session()
        assert app.count == 0
        assert [entry.value for entry in app.request_cache.values()] == [0]
        assert len(app.schema_cache) == 1
        assert app.cache.get_or_create('key', lambda: {1: 'x'}) == {1: 'x'}
        assert app.cache.get('key') == {1: 'x'}


def test_cache_region_is_bound_to_the_tenant(
    applications: Applications, make_tenant: Any
) -> None:
    """What an application caches by hand is one tenant's alone."""
    app = applications.start(OrmCacheApp)
    with app.request_scope(make_tenant('one')):
        app.cache.set('key', 1)
    with app.request_scope(make_tenant('two')):
        assert not app.cache.get('key')
    with app.request_scope(make_tenant('one')):
        assert app.cache.get('key') == 1


def test_host_provides_its_own(applications: Applications, tenant: str) -> None:
    """A host's own session manager, schema, session, cache and tiers are used."""
    settings = applications.backend.settings
    tiers: dict[str, dict[Any, Any]] = {'request': {}, 'schema': {}}

    class Host(OrmCacheApp):
        def __init__(self) -> None:
            self.session_manager = SessionManager(settings['dsn'], Base)
            self.schema = tenant
            self.request_cache = tiers['request']
            self.schema_cache = tiers['schema']

        def session(self) -> Any:
            return self.session_manager.session()

        @orm_cached(policy=User)
        def count(self) -> int:
            return user_count(self)

    app = applications.start(Host, base=None, dsn='sqlite:///nowhere')
    with app.request_scope() as scope:
        assert app.session() is scope.session()
        assert scope.schema == tenant
        assert app.count == 0
        assert len(tiers['request']) == 1
        assert len(tiers['schema']) == 1
        app.session().add(User(name='a'))
        assert app.count == 1
        app.session().commit()
    assert tiers['request'] == {}
    assert Client(OrmCacheMiddleware(app)).get('/', status=404)


def test_change_handler_of_one_descriptor(
    applications: Applications, tenant: str, runs: Runs
) -> None:
    """A host's own signal, bound to a descriptor's handler, evicts that property."""

    class App(OrmCacheApp):
        @orm_cached(policy=lambda obj: isinstance(obj, Document))
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = applications.start(App)
    signal = Signal()
    (descriptor,) = app.orm_cache_descriptors
    handler = app.descriptor_bound_orm_change_handler(descriptor)
    signal.connect(handler)
    value(app, tenant, lambda app: app.count)
    document = Document(kind='document', title='a')
    with committed(app, tenant) as scope:
        scope.session().add(document)
        scope.session().flush()
        signal.send(tenant, obj=document)
    value(app, tenant, lambda app: app.count)
    assert runs.count('count') == 2
    signal.send('elsewhere', obj=document)
    value(app, tenant, lambda app: app.count)
    assert runs.count('count') == 2


def test_signals_tell_objects(applications: Applications, tenant: str) -> None:
    """Handlers get the schema as sender and the changed object, once per change."""
    app = applications.start(OrmCacheApp)
    manager = app.session_manager
    seen: list[Any] = []

    def inserted(schema: str, obj: Any) -> None:
        seen.append(('insert', schema, obj.name))

    def updated(schema: str, obj: Any) -> None:
        seen.append(('update', schema, obj.name))

    def deleted(schema: str, obj: Any) -> None:
        seen.append(('delete', schema, obj.name))

    manager.on_insert.connect(inserted)
    manager.on_update.connect(updated, sender=tenant)
    manager.on_delete.connect(deleted)
    with committed(app, tenant) as scope:
        session = scope.session()
        user = User(name='a')
        session.add(user)
        session.flush()
        user.name = 'b'
        session.flush()
        session.delete(user)
    assert seen == [(kind, tenant, name) for kind, name in
                    (('insert', 'a'), ('update', 'b'), ('delete', 'b'))]  # fmt: skip


def test_descriptor_keeps_the_names_of_the_seed(
    applications: Applications, tenant: str
) -> None:
    """Attributes and methods of OrmCacheDescriptor that hosts use are there."""

    class App(OrmCacheApp):
        @orm_cached(policy='on-table-change:users', by_role=True)
        def users(self) -> Any:
            """All users."""
            return self.session().query(User.name)

    app = applications.start(App)
    descriptor = type(app).users
    assert isinstance(descriptor, OrmCacheDescriptor)
    assert descriptor.cache_policy == 'on-table-change:users'
    assert descriptor.by_role is True
    assert descriptor.cache_key_prefix == 'users'
    assert descriptor.creator.__name__ == 'users'
    assert descriptor.__doc__ == 'All users.'
    assert descriptor.cache_key(app) == 'users-None'
    with app.request_scope(tenant):
        assert descriptor.create(app) == ()
        assert descriptor.load(app) == () == app.users
    assert len(descriptor.used_cache_keys) == 1
    descriptor.assert_no_orm_objects({'a': [1, ('x', {2})]})
    with pytest.raises(ValueNotCacheable):
        descriptor.assert_no_orm_objects({'a': [1, ('x', [User()])]})


def test_expiration_time(
    applications: Applications, tenant: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is older than expiration_time is computed anew."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            runs('count')
            return user_count(self)

    app = applications.start(App, expiration_time=60)
    start = time.time()
    for later, expected in (0, 1), (59, 1), (61, 2), (62, 2):
        monkeypatch.setattr('onegov_ormcache.core.reading.now', lambda later=later: start + later)
        value(app, tenant, lambda app: app.count)
        assert runs.count('count') == expected


def test_releases_are_apart(on_servers: Applications, tenant: str, runs: Runs) -> None:
    """Two releases of an application never read each other's values, but evict them."""

    class App(OrmCacheApp):
        @orm_cached(policy=lambda obj: isinstance(obj, User))
        def count(self) -> Any:
            runs('count')
            return user_count(self)

    old = on_servers.start(App, release='1')
    new = on_servers.start(App, release='2')
    for app in old, new, old, new:
        assert value(app, tenant, lambda app: app.count) == 0
    assert runs.count('count') == 2
    # the old one's code does not judge the new one's policy: any change evicts it
    change(old, tenant, Document(kind='document', title='a'))
    for app in old, new:
        assert value(app, tenant, lambda app: app.count) == 0
    assert runs.count('count') == 3


def test_schema_that_is_dropped_and_made_again(applications: Applications, tenant: str) -> None:
    """What was cached of a schema that was dropped is not valid for its successor."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def count(self) -> int:
            return user_count(self)

    app = applications.start(App)
    change(app, tenant, User(name='a'))
    assert value(app, tenant, lambda app: app.count) == 1
    manager = app.session_manager
    manager.dispose()
    database: Any = manager.database
    if applications.backend.name == 'servers':
        with database._connect() as connection:
            connection.exec_driver_sql(f'DROP SCHEMA "{tenant}" CASCADE')
            connection.commit()
    else:
        for file in database.folder.glob(f'{tenant}.sqlite*'):
            file.unlink()
    assert value(app, tenant, lambda app: app.count) == 0


class Tongue(Enum):
    """A language."""

    GERMAN = 'de'


VARIANTS: list[Any] = [
    None, 'None', '', 1, True, 1.0, b'x', 'x', Tongue.GERMAN, (1, 'a'), ('1,a',), (),
]  # fmt: skip


def test_vary(applications: Applications, tenant: str, runs: Runs) -> None:
    """A property keeps a value for each key that vary gives, and for each role."""

    class App(OrmCacheApp):
        language: Any = None
        identity: Any = None

        @orm_cached(policy=User, vary=lambda app: app.language)
        def greeting(self) -> Any:
            runs('greeting')
            return [repr(self.language)]

        @orm_cached(policy=User, by_role=True, vary=lambda app: app.language)
        def both(self) -> Any:
            return [self.language, self.identity.role]

    class Identity:
        def __init__(self, role: str) -> None:
            self.role = role

    app = applications.start(App)
    for _ in range(2):
        with app.request_scope(tenant):
            for language in VARIANTS:
                app.language = language
                assert app.greeting == [repr(language)]
        for language in 'de', 'fr':
            for role in 'admin', 'member':
                app.language, app.identity = language, Identity(role)
                assert value(app, tenant, lambda app: app.both) == [language, role]
    assert runs.count('greeting') == len(VARIANTS)


def test_vary_that_gives_no_key(applications: Applications, tenant: str) -> None:
    """What has no text that all processes agree on can't be a variant."""

    class App(OrmCacheApp):
        @orm_cached(policy=User, vary=lambda app: (1, object()))
        def wrong(self) -> int:
            return 1

    app = applications.start(App)
    with pytest.raises(VariantError, match=r'wrong .*vary gave'):
        value(app, tenant, lambda app: app.wrong)
    with pytest.raises(PropertyError, match='vary'):
        orm_cached(policy=User, vary='de')(user_count)  # type: ignore[arg-type]


def test_variants_are_not_hidden(applications: Applications, tenant: str) -> None:
    """A property can't read one that varies by something it does not vary by itself, also
    not through a request-cached one."""

    def language(app: Any) -> str:
        return 'de'

    class App(OrmCacheApp):
        @orm_cached(policy=User, vary=language)
        def inner(self) -> int:
            return 1

        @request_cached
        def through(self) -> int:
            return self.inner

        @orm_cached(policy=User, by_role=True)
        def wrong(self) -> int:
            return self.through

        @orm_cached(policy=User, by_role=True, vary=language)
        def right(self) -> int:
            return self.through

    app = applications.start(App)
    assert value(app, tenant, lambda app: app.right) == 1
    with pytest.raises(VariantError, match=r'App\.wrong reads .*App\.through'):
        value(app, tenant, lambda app: app.wrong)


@pytest.mark.parametrize('audit', ['off', 'warn', 'error'])
def test_audit_of_policies(
    applications: Applications, tenant: str, caplog: Any, audit: str
) -> None:
    """A creator that reads a table that its policy does not mention is told of, by name, or
    refused; one whose policy is right is not."""

    class App(OrmCacheApp):
        @orm_cached(policy='on-table-change:users')
        def wrong(self) -> Any:
            return [self.session().query(User).count(), self.session().query(Group).count()]

        @orm_cached(policy='on-table-change:users, groups')
        def right(self) -> Any:
            return [self.session().query(User).count(), self.session().query(Group).count()]

        @orm_cached(policy=lambda obj: isinstance(obj, (User, Group)))
        def judged(self) -> Any:
            return self.right

    app = applications.start(App, audit=audit)
    for _ in range(2):
        assert value(app, tenant, lambda app: (app.right, app.judged)) == ([0, 0], [0, 0])
        if audit == 'error':
            with pytest.raises(AuditError, match=r"App\.wrong read groups.*change:users'"):
                value(app, tenant, lambda app: app.wrong)
        else:
            assert value(app, tenant, lambda app: app.wrong) == [0, 0]
        change(app, tenant, User(name=str(_)))
        with committed(app, tenant) as scope:
            scope.session().query(User).delete()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (1 if audit == 'warn' else 0)
    assert all('App.wrong read groups' in message for message in messages)


def test_muted_signals(applications: Applications, tenant: str, runs: Runs) -> None:
    """With muted signals no handler is called, and nothing that changed is missed."""

    class App(OrmCacheApp):
        @orm_cached(policy=User)
        def users(self) -> int:
            runs('users')
            return user_count(self)

        @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name == 'a')
        def judged(self) -> int:
            runs('judged')
            return int(self.session().query(User).filter_by(name='a').count())

    app = applications.start(App)
    other = applications.elsewhere(app)
    seen: list[Any] = []

    def inserted(schema: str, obj: Any) -> None:
        seen.append(obj.name)

    app.session_manager.on_insert.connect(inserted)
    read = lambda app: (app.users, app.judged)  # noqa: E731
    assert value(other, tenant, read) == (0, 0)
    with app.session_manager.muted(), committed(app, tenant) as scope:
        scope.session().add(User(name='a'))
        assert read(app) == (1, 1)
        scope.session().add(User(name='b'))
    assert seen == []
    assert value(other, tenant, read) == (2, 1)
    change(app, tenant, User(name='c'))
    assert seen == ['c']
    ran = runs.count('judged')
    assert value(other, tenant, read) == (3, 1)
    assert runs.count('judged') == ran, 'c does not concern the policy'


@pytest.mark.parametrize('first', [True, False])
def test_frozen_in_one_release_alone(
    on_servers: Applications, tenant: str, first: bool
) -> None:
    """What a release with `frozen` has stored is mutable in one without it, for each request
    its own, and the other way around."""

    def start(frozen: bool) -> Any:
        class Town(OrmCacheApp):
            @orm_cached(policy=User, frozen=frozen)
            def names(self) -> Any:
                runs.append(frozen)
                return [['a']]

        return on_servers.start(Town)

    runs: list[bool] = []
    one, other = start(first), start(not first)
    assert value(one, tenant, lambda app: app.names) == ((('a',),) if first else [['a']])
    for _ in range(2):
        read = value(other, tenant, lambda app: app.names)
        if first:
            assert read == [['a']]
            read[0].append('spoilt')
        else:
            assert read == (('a',),)
    assert runs == [first]


def test_frozen(applications: Applications, tenant: str) -> None:
    """A frozen value is immutable at every depth, and one for all requests of a process."""

    class App(OrmCacheApp):
        @orm_cached(policy=User, frozen=True)
        def tree(self) -> Any:
            return {'list': [{'set': {1}}, (2, [3])], 'empty': []}

        @orm_cached(policy=User)
        def outer(self) -> Any:
            return [self.tree]

    app = applications.start(App)
    seen = []
    for _ in range(3):
        with app.request_scope(tenant):
            seen.append(app.tree)
    assert seen[0] == {'list': ({'set': frozenset({1})}, (2, (3,))), 'empty': ()}
    assert seen[1] is seen[2]
    for change_it in (
        lambda: seen[0].update(a=1),
        lambda: seen[0]['list'][0].pop('set'),
        lambda: seen[0]['list'][0]['set'].add(2),
        lambda: seen[0]['list'].append(2),
    ):
        with pytest.raises((AttributeError, TypeError)):
            change_it()
    assert value(app, tenant, lambda app: app.outer) == [seen[0]]
