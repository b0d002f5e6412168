"""The command line, ``onegov-ormcache``: finds the command, and reports errors.

Exit codes: 0 if all is well, 1 if a command has found something that is not, 2 if it can't be
carried out, 130 after Ctrl-C or SIGTERM, 141 if nobody reads its output any more.

It does not know how its commands work: the modules ``cli_...`` do, and :mod:`.demo`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

import click
import redis
from sqlalchemy.exc import SQLAlchemyError

from ..errors import OrmCacheError
from . import cli_triggers
from .cli_checking import check, explain
from .cli_evicting import evict
from .cli_looking import outbox, tags, values
from .cli_site import APP, DSN, REDIS
from .cli_stats import stats
from .secrets import printable, without_secrets

#: Exit code if the command can't be carried out.
FAILED = 2

#: What errors do not show of the arguments: one that may have a password, and all after it.
SECRET = re.compile(r'\S*(://|[=@]).*', re.DOTALL)

#: What Python puts in the place of bytes that are no text. Neither server takes it.
NO_TEXT = re.compile('[\ud800-\udfff]')

#: Exit code if Ctrl-C or SIGTERM ended the command.
INTERRUPTED = 130

#: Exit code if the output goes nowhere: that of a program which SIGPIPE ends.
UNHEARD = 141

#: Seconds for which a database may take to let us in. libpq and psycopg read it from here if a URL
#: says nothing else, also if the application has the URL.
CONNECT_TIMEOUT = ('PGCONNECT_TIMEOUT', '5')


@click.group(
    context_settings={'help_option_names': ['-h', '--help'], 'max_content_width': 99},
    no_args_is_help=False,
)
@click.version_option(package_name='onegov_ormcache', message='%(version)s')
def commands() -> None:
    """See what a cache does, evict by hand, and find what is wrong.

    Exit codes: 0 all is well, 1 something was found, 2 it can not be done, 130 interrupted.
    """


for command in stats, tags, values, explain, evict, outbox, check, cli_triggers.triggers:
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: by default those of this process.
    :return: the exit code.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if sys.stdout is None:  # it is closed; see the documentation of sys.__stdout__
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), 'w')
    try:
        with prepared():
            code = run(given)
            sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        # or the interpreter tries again to write what is left, and tells of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return UNHEARD
        print(f'error: {printable(str(error))}; is there room for the output?', file=sys.stderr)
        return FAILED


def run(given: list[str]) -> int:
    """Run the command that the arguments name; print what is wrong with them, or goes wrong.

    :return: the exit code.
    """
    try:
        if any(map(NO_TEXT.search, [*given, *(os.environ.get(n, '') for n in (APP, REDIS, DSN))])):
            raise click.UsageError(
                f'An argument, or one of the variables {APP}, {REDIS} and {DSN}, is no UTF-8.'
            )
        with commands.make_context(program(), given) as context:
            return int(commands.invoke(context) or 0)
    except click.exceptions.Exit as end:
        return end.exit_code
    except SystemExit as end:
        # not its own code, which may be 0: the command was not carried out
        text = printable(without_secrets(f'the application has ended this program: {end}'))
        print(f'error: {text}', file=sys.stderr)
    except click.UsageError as error:
        usage = ''
        if error.ctx is not None:
            usage = f"{error.ctx.get_usage()}\nTry '{error.ctx.command_path} --help' for help.\n"
        message = SECRET.sub('... (the rest is not shown)', error.format_message())
        print(f'{usage}error: {printable(message)}', file=sys.stderr)
    except (OrmCacheError, click.ClickException, SQLAlchemyError, redis.RedisError) as error:
        # the latter two if a connection is lost in the middle
        print(f'error: {printable(without_secrets(in_one_line(error)))}', file=sys.stderr)
    return FAILED


def program() -> str:
    """Return the name by which this program was called."""
    name = Path(sys.argv[0]).stem
    return name if name.startswith('onegov-ormcache') else 'python -m onegov_ormcache'


@contextmanager
def prepared() -> Iterator[None]:
    """Prepare the process for a command, and leave it as it was."""
    name, seconds = CONNECT_TIMEOUT
    known, received = os.environ.get(name), {}
    os.environ.setdefault(name, seconds)
    if current_thread() is main_thread():
        for number in signal.SIGINT, signal.SIGTERM:
            received[number] = signal.signal(number, interrupt)
    for stream in sys.stdout, sys.stderr:
        if (reconfigure := getattr(stream, 'reconfigure', None)) is not None:
            reconfigure(errors='backslashreplace')  # a terminal that is not UTF-8
    try:
        yield
    finally:
        for number, handler in received.items():
            signal.signal(number, handler)
        if known is None:
            os.environ.pop(name, None)


@commands.command()
@click.option('--dsn', metavar='URL', help='A database, as in postgresql+psycopg://... [SQLite]')
@click.option('--redis-url', metavar='URL', help='A Redis, as in redis://... [memory]')
@click.option(
    '--tenants', type=click.IntRange(2), metavar='N', help='How many countries. [5]'
)
@click.option('--all', 'every', is_flag=True, help='Every country that has cities.')
@click.option('--serve', is_flag=True, help='Keep the application running.')
@click.option(
    '--port', type=click.IntRange(0, 65535), default=8080, show_default=True, metavar='N',
    help='For --serve.',
)  # fmt: skip
def demo(
    dsn: str | None,
    redis_url: str | None,
    tenants: int | None,
    every: bool,
    serve: bool,
    port: int,
) -> int:
    """Show what the cache does, and what that saves.

    Loads real countries as tenants of a town hall application, sends requests, changes data
    between them, and shows where each value came from. It needs no servers, and leaves nothing
    behind.
    """
    if every and tenants is not None:
        raise click.UsageError('Give --tenants or --all, and not both.')
    try:
        from .demo import run as run_demo
    except ModuleNotFoundError as error:
        name = (error.name or '').partition('.')[0]
        raise OrmCacheError(
            f'the demo needs {name}: python -m pip install "onegov_ormcache[demo]"'
        ) from error
    run_demo(
        dsn=dsn,
        redis_url=redis_url,
        count=None if every else tenants or 5,
        port=port if serve else None,
    )
    return 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt on SIGTERM as on Ctrl-C, so that a command removes what it has
    made."""
    raise KeyboardInterrupt


def in_one_line(error: Exception) -> str:
    """Return an error's message without line breaks and without SQLAlchemy's links."""
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    lines = [line.strip() for line in text.splitlines()]
    return ' '.join(line for line in lines if line and not line.startswith('(Background on'))
