"""Runs the Lua scripts of the tag store on Redis.

They are functions of a library, which keeps the id of the server that it is loaded into: a library
that was loaded from a dump, or on a replica, begins without it. So the id is always that of the
server which executes the rest, whichever connections or proxies lie between, and the server is not
asked for it each time. A server without functions gets the same scripts one by one, and these ask
it each time.

The id, ``run_id`` in the scripts, is the server's ``run_id`` and the id of its replication. The
former is another one after each start, the latter after each promotion: a server that has been the
primary, then a replica, and is the primary again, may lack what was acknowledged meanwhile.

The scripts are the files in ``lua/``, beside this module. The comment in each states its
keys, arguments and reply, and why it must be atomic. This module does not know what they do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import cache
from hashlib import blake2b
from importlib.resources import files
from typing import Any

import redis

from ..redis_client.breaker import INSISTS, insisting
from ..redis_client.client import Client
from ..redis_client.replies import Reply
from .snapshot import new_token

log = logging.getLogger(__name__)

#: Milliseconds for which a library keeps the id; to ask costs more than most scripts. Within this
#: time no Sentinel and no cluster makes another server the primary, lets processes commit there,
#: and makes this one the primary again: each of the two fail-overs takes them 100 ms and more.
KNOWN_MILLISECONDS = 10

#: The id of the server, in Lua.
ID = """
string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
.. '-' .. (string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or '')
"""

#: Gets the id in a script.
ASK_RUN_ID = f'local run_id = {ID}'

#: The variables of a library, in which it keeps the id, and the time at which it has asked for it.
VARIABLES = 'local server_id, asked_at'

#: Gets the id in a function of a library.
KEEP_RUN_ID = f"""
local time = redis.call('TIME')
local at = time[1] * 1000 + time[2] / 1000
if not server_id or at < asked_at or at >= asked_at + {KNOWN_MILLISECONDS} then
    server_id, asked_at = {ID}, at
end
local run_id = server_id
"""

#: The scripts that a server without memory refuses, because they store values. All others are
#: needed to know which values are valid.
STORING = frozenset({'fill'})

#: The scripts that need nothing of ``helpers.lua``.
LEAN = frozenset({'snapshot', 'replace', 'identities', 'look'})

#: The scripts that need ``values.lua``.
READING = frozenset({'look', 'claim'})


@cache
def script(name: str) -> str:
    """Return the text of a script, after the code that all scripts have in common."""
    folder = files(__package__) / 'lua'
    helpers = () if name in LEAN else ('helpers',)
    values = ('values',) if name in READING else ()
    parts = 'common', *helpers, *values, name
    return ''.join((folder / f'{part}.lua').read_text() for part in parts)


class Scripts:
    """The scripts on one Redis; made by a tag store, lives as long.

    :param client: made by :func:`onegov_ormcache.redis_client.client.connect`.
    :param names: the names of the scripts.
    """

    def __init__(self, client: Client, names: Collection[str]) -> None:
        self.client = client
        bodies = {name: script(name) for name in names}
        digest = blake2b('\n'.join(bodies.values()).encode(), digest_size=8).hexdigest()
        # the name says what is in it, so that releases with other scripts can use the same server
        self._functions = {name: f'ormcache_{name}_{digest}' for name in names}
        self._library = f'#!lua name=onegov_ormcache_{digest}\n{VARIABLES}\n' + ''.join(
            _function(self._functions[name], body, allows_oom=name not in STORING)
            for name, body in bodies.items()
        )
        self._scripts = {
            name: client.register_script(ASK_RUN_ID + body) for name, body in bodies.items()
        }
        #: False once the server was found to have no functions.
        self.has_functions = True

    def run(self, name: str, keys: tuple[str, ...], *arguments: str | bytes) -> Any:
        """Run a script and return its reply.

        Each attempt gets a new token as its first argument; see :func:`.client.connect`.

        :raises StoreUnreachable: for any failure.
        """
        client = self.client.at(keys[0])
        return client.ask(lambda: self._run(client, name, keys, (new_token(), *arguments)))

    def send(self, name: str, keys: tuple[str, ...], *arguments: str | bytes) -> Running:
        """Send the command that runs a script, and do not wait for its reply.

        :raises StoreUnreachable: if it can't be sent.
        """

        client = self.client.at(keys[0])

        def sent() -> Reply:
            given = (new_token(), *arguments)
            if self.has_functions:
                head = 'FCALL', self._functions[name]
            else:
                head = 'EVALSHA', self._scripts[name].sha
            return client.send(*head, len(keys), *keys, *given)

        return Running(self, client, client.ask(sent), name, keys, arguments)

    def _run(
        self,
        client: Client,
        name: str,
        keys: tuple[str, ...],
        arguments: tuple[str | bytes, ...],
    ) -> Any:
        if self.has_functions:
            function = self._functions[name]
            try:
                return client.fcall(function, len(keys), *keys, *arguments)
            except redis.ResponseError as error:
                self.mend(error, client)
            if self.has_functions:
                return client.fcall(function, len(keys), *keys, *arguments)
        return self._scripts[name](keys, arguments, client)

    def mend(self, error: redis.ResponseError, client: Client) -> None:
        """Load what a server lacks; raise the error if it says something else.

        :param client: the client of the server that gave the error.
        """
        if isinstance(error, redis.exceptions.NoScriptError):
            self._load_scripts(client)
            return
        if 'function not found' in str(error).lower():
            try:
                client.function_load(self._library)
                return
            except redis.ResponseError as failure:
                if 'already exists' in str(failure):  # another process was faster
                    return
                error = failure
        if not (self.has_functions and _has_no_functions(error)):
            raise error
        log.info('Redis runs no functions (%s): each script asks for the run_id instead', error)
        self._load_scripts(client)
        self.has_functions = False

    def _load_scripts(self, client: Client) -> None:
        # all of them, also those whose replies nobody waits for
        for each in self._scripts.values():
            client.script_load(each.script)


class Running:
    """A script that runs, or will soon; made by :meth:`Scripts.send`."""

    def __init__(
        self,
        scripts: Scripts,
        client: Client,
        reply: Reply,
        name: str,
        keys: tuple[str, ...],
        arguments: tuple[str | bytes, ...],
    ) -> None:
        self._scripts = scripts
        self._client = client
        self._reply = reply
        self._again: Callable[[], Any] = lambda: scripts.run(name, keys, *arguments)
        self._insistence = INSISTS.get()

    def result(self) -> Any:
        """Wait for the reply and return it; run the script again if it, or the connection, was
        lost.

        :raises StoreUnreachable: for any failure.
        """
        try:
            answer = self._reply.result()
            self._client.answered(None, self._reply.is_trial)
            return answer
        except (redis.ConnectionError, redis.exceptions.AskError):
            pass  # after a redirection of a cluster nothing was executed
        except redis.ResponseError as error:
            self._client.answered(error, self._reply.is_trial)
            try:
                self._scripts.mend(error, self._client)
            except redis.RedisError as failure:
                raise self._client.unreachable(failure) from failure
        except redis.RedisError as error:
            raise self._client.unreachable(error) from error
        with insisting(self._insistence):
            return self._again()

    def leave(self, what: str) -> None:
        """Do not wait for the reply; see :meth:`.Reply.leave`."""
        self._reply.leave(what)


def _function(name: str, body: str, *, allows_oom: bool) -> str:
    """Return the Lua code that makes a function of the library."""
    flags = "'allow-oom'" if allows_oom else ''
    return (
        f"redis.register_function{{function_name='{name}', flags={{{flags}}}, "
        f'callback=function(KEYS, ARGV)\n{KEEP_RUN_ID}{body}\nend}}\n'
    )


def _has_no_functions(error: redis.ResponseError) -> bool:
    """Return whether the server does not know functions, or may not be given any."""
    return isinstance(error, redis.exceptions.NoPermissionError) or (
        'unknown command' in str(error).lower()
    )
