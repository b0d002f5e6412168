"""The guarded request: what a cached view reads of a request must be part of its response's key.

While the view runs, its request has a class and an environment of their own, which report what is
read of it, by the routing as well. This module does not know what becomes of a report, nor what
a key is made of.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Collection, Iterable, Iterator
from inspect import getattr_static
from typing import Any, cast

import morepath

#: Keys of the environment that each response's key has, or that are the same for all requests.
ALWAYS_COVERED = frozenset((
    'REQUEST_METHOD', 'SCRIPT_NAME', 'PATH_INFO', 'QUERY_STRING', 'CONTENT_TYPE',
    'wsgi.version', 'wsgi.errors', 'wsgi.multithread', 'wsgi.multiprocess', 'wsgi.run_once',
    'webob._parsed_query_vars', 'webob._parsed_post_vars', 'webob._parsed_cookies',
    'webob.url_encoding',
))  # fmt: skip

#: Keys of the environment that make the URL of the host.
HOST_KEYS = frozenset(('HTTP_HOST', 'SERVER_NAME', 'SERVER_PORT', 'wsgi.url_scheme'))

#: The key of the environment in which a pass through the routing finds what it is made for.
PASS = 'onegov_ormcache.pass'

#: The attribute of a guarded request that has its guard.
GUARD = '_orm_cache_guard'

#: Attributes that each request has of its own.
OWN_ATTRIBUTES = frozenset((
    'environ', 'method', 'app', 'unconsumed', 'view_name', 'view_code_info', 'identity',
    '_root_app', '_after', '_link_prefix_cache', '_headers',
))  # fmt: skip

#: The attributes of an identity that a role covers, beside the class.
ROLE_ATTRIBUTES = frozenset(('role', '__class__'))

#: The key in the dictionary of a guarded identity for what it stands for, and its guard.
STANDS_FOR = '_orm_cache_stands_for'

#: The flag of classes that are made by Python code, ``Py_TPFLAGS_HEAPTYPE``.
HEAP_TYPE = 1 << 9


class Guard:
    """Reports what is read of one request and not covered by its response's key.

    Made for each run of a cached view.

    :param covered: the keys of the environment that may be read, beside :data:`ALWAYS_COVERED`.
    :param identify: returns the identity of a request as the view may see it, or None if it may
        not look at it.
    :param report: called with the name of each thing that is read and not covered.
    """

    def __init__(
        self,
        covered: Collection[str],
        identify: Callable[[morepath.Request], Any],
        report: Callable[[str], None],
    ) -> None:
        self.covered = ALWAYS_COVERED | {PASS, *covered}
        self.identify = identify
        self._report = report
        #: The number of times that the request was looked at, while that is counted.
        self.looks = 0
        #: False while something is read that is covered by other means.
        self.is_watching = True
        #: The attributes that others have given the request, by name.
        self.foreign: dict[str, Any] = {}

    def read(self, what: str) -> None:
        """Report that something was read."""
        if self.is_watching:
            self._report(what)

    def unwatched(self, read: Callable[[], Any]) -> Any:
        """Call a function whose reads are covered, and return its result."""
        before, self.is_watching = self.is_watching, False
        try:
            return read()
        finally:
            self.is_watching = before


class GuardedEnvironment(dict[str, Any]):
    """The environment of a guarded request; it reports each read of a key that is not covered."""

    def __init__(self, environ: dict[str, Any], guard: Guard) -> None:
        super().__init__(environ)
        self._guard = guard
        # what the view itself has set
        self._own: set[str] = set()

    def _read(self, key: Any) -> None:
        if key not in self._guard.covered and key not in self._own:
            self._guard.read(told(key))

    def _read_all(self) -> None:
        self._guard.read('environ')

    def own(self) -> dict[str, Any]:
        """Return what the view has set for others, without what WebOb keeps here."""
        return {
            key: dict.__getitem__(self, key) for key in self._own
            if dict.__contains__(self, key) and not key.startswith('webob.')
        }  # fmt: skip

    def __getitem__(self, key: str) -> Any:
        self._read(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._read(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._read(key)
        return super().get(key, default)

    def __setitem__(self, key: str, value: Any) -> None:
        self._own.add(key)
        super().__setitem__(key, value)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._read(key)
        return super().setdefault(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self._read(key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[str, Any]:
        self._read_all()
        return super().popitem()

    def __iter__(self) -> Iterator[str]:
        self._read_all()
        return super().__iter__()

    def __reversed__(self) -> Iterator[str]:
        self._read_all()
        return super().__reversed__()

    def __len__(self) -> int:
        self._read_all()
        return super().__len__()

    def __eq__(self, other: object) -> bool:
        self._read_all()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def keys(self) -> Any:
        self._read_all()
        return super().keys()

    def values(self) -> Any:
        self._read_all()
        return super().values()

    def items(self) -> Any:
        self._read_all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        self._read_all()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __repr__(self) -> str:
        self._read_all()
        return super().__repr__()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (self.copy(),)


class GuardedRequest:
    """The base class of a request's class while a cached view runs."""

    environ: GuardedEnvironment

    @property
    def identity(self) -> Any:
        """The identity, as far as the response's key covers it."""
        request: Any = self
        return _guard_of(self).identify(request)

    @identity.setter
    def identity(self, value: Any) -> None:
        _guard_of(self).identify = lambda request: value

    def __getattr__(self, name: str) -> Any:
        guard = vars(self).get(GUARD)
        if guard is not None and name in guard.foreign:
            guard.read(f'the attribute {name}')
            return guard.foreign[name]
        usual: Any = super()
        found = getattr(usual, '__getattr__', None)
        if found is None:
            raise AttributeError(f'{type(self).__name__!r} object has no attribute {name!r}')
        return found(name)


class ForeignAttribute:
    """An attribute of a guarded request that its class has too: a default that others have
    replaced, or a value that the class has computed for the request once."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, request: Any, owner: type) -> Any:
        attributes = vars(request)
        return attributes[self._name] if self._name in attributes else self._read(request)

    def _read(self, request: Any) -> Any:
        guard = _guard_of(request)
        guard.read(f'the attribute {self._name}')
        return guard.foreign[self._name]

    def __set__(self, request: Any, value: object) -> None:
        vars(request)[self._name] = value


def guard(request: morepath.Request, guarded_by: Guard, given: dict[str, Any]) -> None:
    """Let a new request report what is read of it.

    :param given: the attributes of the request that it stands for.
    """
    own: Any = request
    own.__class__ = guarded_class(type(request), foreign_names(given))
    attributes = vars(request)
    # also those that its class has made: of whatever it has read before it was guarded
    for name in foreign_names(attributes):
        del attributes[name]
    guarded_by.foreign = {name: given[name] for name in foreign_names(given)}
    attributes['unconsumed'] = list(given['unconsumed'])
    attributes.pop('_headers', None)  # those of the environment without its guard
    attributes[GUARD] = guarded_by
    # what was parsed of a body or cookie before; whoever parses it again has read that
    attributes['environ'].pop('webob._parsed_post_vars', None)
    attributes['environ'].pop('webob._parsed_cookies', None)
    attributes['environ'] = GuardedEnvironment(attributes['environ'], guarded_by)


def looks_at(function: Callable[[Any], object], request: object) -> bool:
    """Return whether a function looks at a guarded request at all, not only at what a thread or
    a module has."""
    own: Any = request
    guarded_by, usual = _guard_of(own), type(own)
    before = guarded_by.looks
    own.__class__ = counting_class(usual)
    try:
        function(own)
    except Exception:  # it expects another object
        return False
    finally:
        own.__class__ = usual
    return guarded_by.looks > before


def foreign_names(attributes: Collection[str]) -> tuple[str, ...]:
    """Return the names of the attributes that others than Morepath have given a request.

    They are part of a response's key, because a view without one may show that it is not there.
    """
    return tuple(sorted(set(attributes) - OWN_ATTRIBUTES))


def guarded_class(usual: Any, foreign: Iterable[str]) -> type:
    """Return the class that a request of a class has while it is guarded; make it once.

    :param foreign: the names of the attributes that others have given the request.
    """
    # what a property of the class hides is not seen by anybody
    shadowing = frozenset(
        name for name in foreign
        if hasattr(usual, name) and not hasattr(type(getattr_static(usual, name)), '__set__')
    )  # fmt: skip
    made: dict[frozenset[str], type] | None = vars(usual).get('_guarded_classes')
    if made is None:
        made = usual._guarded_classes = {}
    if shadowing not in made:
        namespace: dict[str, Any] = {name: ForeignAttribute(name) for name in shadowing}
        namespace |= {'__module__': usual.__module__, '__qualname__': usual.__qualname__}
        made[shadowing] = type(usual.__name__, (GuardedRequest, usual), namespace)
    return made[shadowing]


def counting_class(guarded: Any) -> type:
    """Return a class of guarded requests that count how often they are looked at; make it once."""
    found: type | None = vars(guarded).get('_counting_class')
    if found is None:

        def count(self: Any, name: str) -> Any:
            object.__getattribute__(self, '__dict__')[GUARD].looks += 1
            return guarded.__getattribute__(self, name)

        namespace = {'__getattribute__': count, '__module__': guarded.__module__}
        found = guarded._counting_class = type(guarded.__name__, (guarded,), namespace)
    return found


def guarded_identity(identity: Any, guarded_by: Guard) -> Any:
    """Return an object that stands for an identity, and reports what is read of it beside its
    role.

    It is of a derived class, so permission rules for the identity's class find it.
    """
    if identity is morepath.NO_IDENTITY:
        return identity  # it has nothing to tell
    if is_opaque(type(identity)):
        guarded_by.read('identity')
        return identity
    found = object.__new__(guarded_identity_class(type(identity)))
    object.__getattribute__(found, '__dict__')[STANDS_FOR] = identity, guarded_by
    return found


def is_opaque(usual: type) -> bool:
    """Return whether instances of a class can tell of themselves by other ways than attributes,
    as strings do, or whether it does not expect to be derived from."""
    return (
        any(not each.__flags__ & HEAP_TYPE for each in usual.__mro__[:-1])
        or any('__init_subclass__' in vars(each) for each in usual.__mro__[:-1])
        or type(usual) not in (type, ABCMeta)
    )


def guarded_identity_class(usual: Any) -> Any:
    """Return the class of the objects that stand for a class's instances; make it once, because
    Morepath remembers the permissions of each class for ever."""
    found = vars(usual).get('_guarded_identity_class')
    if found is not None:
        return found

    def read(self: Any, name: str) -> Any:
        identity, guarded_by = object.__getattribute__(self, '__dict__')[STANDS_FOR]
        if name not in ROLE_ATTRIBUTES:
            guarded_by.read(f'identity.{name}')
        return getattr(identity, name)

    def write(self: Any, name: str, value: Any) -> None:
        identity, _ = object.__getattribute__(self, '__dict__')[STANDS_FOR]
        setattr(identity, name, value)

    namespace = {
        '__module__': usual.__module__, '__qualname__': usual.__qualname__,
        '__getattribute__': read, '__setattr__': write,
    }  # fmt: skip
    made = usual._guarded_identity_class = type(usual)(usual.__name__, (usual,), namespace)
    return made


def told(key: object) -> str:
    """Return what a key of the environment is called in messages."""
    if isinstance(key, str) and key.startswith('HTTP_'):
        return f'the header {header_name(key)}'
    if key in HOST_KEYS:
        return 'the host or the scheme'
    return f'environ[{key!r}]'


def header_key(name: str) -> str:
    """Return the key of the environment that has a request's header."""
    key = name.upper().replace('-', '_')
    return key if key in ('CONTENT_TYPE', 'CONTENT_LENGTH') else f'HTTP_{key}'


def header_name(key: str) -> str:
    """Return the name of the header that a key of the environment has."""
    return '-'.join(part.capitalize() for part in key.removeprefix('HTTP_').split('_'))


def _guard_of(request: object) -> Guard:
    return cast('Guard', object.__getattribute__(request, '__dict__')[GUARD])
