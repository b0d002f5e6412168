"""Run the command line: ``onegov-ormcache``, or ``python -m onegov_ormcache``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

#: The packages of the extra ``cli``.
EXTRA = ('click', 'rich')


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: by default those of this process.
    :return: the exit code, see :mod:`.tools.cli`.
    """
    try:
        from .tools.cli import main as run
    except ModuleNotFoundError as error:
        missing = (error.name or '').partition('.')[0]
        if missing not in EXTRA:
            raise
        print(
            f'error: the command line needs {missing}: '
            'python -m pip install "onegov_ormcache[cli]"',
            file=sys.stderr,
        )
        return 2
    return run(arguments)


if __name__ == '__main__':
    sys.exit(main())
