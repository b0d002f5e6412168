"""The command line, ``python -m onegov_ormcache``: parses arguments, and reports errors.

It does not know how its commands work: :mod:`.demo` and :mod:`.cli_triggers` do.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from ..errors import OrmCacheError
from . import cli_triggers

#: Exit code if the command can't be carried out.
FAILED = 2

#: What errors do not show of the arguments: one that may have a password, and all after it.
SECRET = re.compile(r'\S*(://|[=@]).*', re.DOTALL)

#: Exit code if Ctrl-C or SIGTERM ended the command.
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param argv: the arguments; by default those of this process.
    :return: the exit code.
    :raises SystemExit: if the arguments are wrong, or ask for help.
    """
    arguments = parser().parse_args(argv)
    for received in signal.SIGINT, signal.SIGTERM:
        signal.signal(received, interrupt)
    try:
        return int(arguments.run(arguments))
    except OrmCacheError as error:
        print(f'error: {in_one_line(error)}', file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return INTERRUPTED


class Parser(argparse.ArgumentParser):
    """A parser whose errors do not repeat what may be a URL or a password, as argparse's do."""

    def error(self, message: str) -> NoReturn:
        super().error(SECRET.sub('... (the rest is not shown)', message))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = Parser(prog='python -m onegov_ormcache')
    commands: argparse._SubParsersAction[argparse.ArgumentParser]
    commands = parser.add_subparsers(required=True, metavar='COMMAND', parser_class=Parser)
    demo = commands.add_parser(
        'demo',
        help='show what is cached, what is evicted, and what that saves',
        description='Loads real countries as tenants of a town hall application, sends '
        'requests, changes data between them, and shows where each value came from. It needs '
        'no servers, and leaves nothing behind.',
    )
    demo.add_argument(
        '--dsn', metavar='URL', help='a database, as in postgresql+psycopg://...; default: SQLite'
    )
    demo.add_argument(
        '--redis-url', metavar='URL', help='a Redis, as in redis://...; default: memory'
    )
    size = demo.add_mutually_exclusive_group()
    size.add_argument(
        '--tenants', metavar='N', type=number(2), default=5, help='how many countries (5)'
    )
    size.add_argument('--all', action='store_true', help='every country that has cities')
    demo.add_argument('--serve', action='store_true', help='keep the application running')
    demo.add_argument(
        '--port', metavar='N', type=number(0, 65535), default=8080, help='for --serve (8080)'
    )
    demo.set_defaults(run=run_demo)
    cli_triggers.add_parser(commands)
    return parser


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a type of arguments: whole numbers from ``least`` to ``most``, both included.

    :param most: None for no limit.
    """

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            limit = f'{least} or more' if most is None else f'{least} to {most}'
            raise argparse.ArgumentTypeError(f'{text!r}; expected {limit}')
        return value

    return whole_number


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the demo.

    :return: the exit code.
    :raises OrmCacheError: if it can't run; the message says what to do about it.
    """
    try:
        from .demo import run
    except ModuleNotFoundError as error:
        name = (error.name or '').partition('.')[0]
        if name == 'fixtures':
            raise OrmCacheError(
                'the demo shows the application in fixtures/townhall: run it in a checkout of '
                'the repository'
            ) from error
        raise OrmCacheError(
            f'the demo needs {name}: python -m pip install "onegov_ormcache[demo]"'
        ) from error
    run(
        dsn=arguments.dsn,
        redis_url=arguments.redis_url,
        count=None if arguments.all else arguments.tenants,
        port=arguments.port if arguments.serve else None,
    )
    return 0


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt on SIGTERM as on Ctrl-C, so that the demo removes what it has
    made."""
    raise KeyboardInterrupt


def in_one_line(error: OrmCacheError) -> str:
    """Return an error's message without line breaks and without SQLAlchemy's links."""
    lines = [line.strip() for line in str(error).splitlines()]
    return ' '.join(line for line in lines if line and not line.startswith('(Background on'))


if __name__ == '__main__':
    sys.exit(main())
