"""A value that the request has already: nanoseconds for one more access.

Measured in a process for each interpreter, on the embedded default: an access that hits
the request tier goes to no server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from .context import Context
from .measuring import Timing
from .peers import Environment, PeersMissingError
from .results import CaseResult, Column, Plot

ROOT = Path(__file__).parents[2]
VERSIONS = ('3.11', '3.12', '3.13')


def run(context: Context) -> CaseResult:
    result = CaseResult(
        'hit',
        'One more access in the same request',
        'Time for an access to a property that the request has read before. The plain '
        'property is a Python property that returns a constant, which Python 3.12 and later '
        'inline; the context variable is a descriptor that returns an item of a dictionary '
        'that a context variable holds, the least that gives each request its own value. A '
        'property with arguments is called with the same ones each time.',
        (
            Column('seconds', 'time per access', 'seconds'),
            Column('plain', 'to a plain property', 'ratio'),
            Column('context', 'to a context variable', 'ratio'),
            Column('cached', 'to orm_cached', 'ratio'),
        ),
        Plot('seconds'),
    )
    for version in VERSIONS:
        try:
            timings = measure(context, version)
        except PeersMissingError as error:
            result.add(f'Python {version}', 'all', note=f'left out: {error}')
            continue
        plain, context_variable = timings['plain property'], timings['context variable']
        for name, timing in timings.items():
            result.add(
                f'Python {version}', name, seconds=timing,
                plain=timing.ratio(plain), context=timing.ratio(context_variable),
                cached=timing.ratio(timings['orm_cached']),
            )  # fmt: skip
    return result


def measure(context: Context, version: str) -> dict[str, Timing]:
    """The timings of one interpreter.

    :raises PeersMissingError: if it is not there, or lacks what the package needs.
    """
    own = f'{sys.version_info.major}.{sys.version_info.minor}' == version
    python = sys.executable if own else other_python(context, version)
    settings: dict[str, Any] = {'accesses': context.sizes.accesses, 'rounds': context.sizes.rounds}
    if own:
        settings |= {'dsn': context.dsn, 'redis_url': context.redis_url}
    process = subprocess.run(
        [python, '-m', 'tests.benchmarks.hit_worker', json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    if process.returncode:
        raise PeersMissingError(process.stderr.strip().splitlines()[-1][:80])
    samples: dict[str, Any] = json.loads(process.stdout)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def other_python(context: Context, version: str) -> str:
    """An interpreter of the version, in an environment with what the package needs."""
    found = shutil.which(f'python{version}')
    homes = sorted(Path.home().glob(f'.pyenv/versions/{version}.*/bin/python'))
    # what pyenv puts on the path may stand for a version that is not switched on
    interpreter = str(homes[-1]) if homes else found
    if interpreter is None:
        raise PeersMissingError('no such interpreter was found')
    metadata = ConfigParser()
    metadata.read(ROOT / 'setup.cfg', encoding='utf-8')
    needed = metadata['options']['install_requires'].split()
    extras = metadata['options.extras_require']
    for name in ('morepath', 'postgres'):
        needed += extras[name].split()
    environment = Environment(context.out / f'python-{version}', interpreter, needed)
    return environment.python
