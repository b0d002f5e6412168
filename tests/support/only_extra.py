"""Runs a module as if only the package and one of its extras were installed.

    python -m tests.support.only_extra docs sphinx -b html docs OUT

Whatever else the environment has can't be imported. So what an extra lacks is found without an
environment of its own. This module knows nothing of pytest.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable
from configparser import ConfigParser
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGE = 'onegov_ormcache'


def declared(extra: str | None) -> list[Requirement]:
    """Return what the package itself requires, or one of its extras."""
    parsed = ConfigParser()
    parsed.read(ROOT / 'setup.cfg', encoding='utf-8')
    section, name = ('options.extras_require', extra) if extra else ('options', 'install_requires')
    return [Requirement(line) for line in parsed[section][name].splitlines() if line.strip()]


def required(distribution: str, extra: str | None) -> list[Requirement]:
    """Return what a distribution requires by itself, or for one of its extras."""
    if canonicalize_name(distribution) == canonicalize_name(PACKAGE):
        return declared(extra)
    try:
        found = [Requirement(line) for line in requires(distribution) or ()]
    except PackageNotFoundError:
        return []  # of another platform, or left out
    without = [each for each in found if not each.marker or each.marker.evaluate({'extra': ''})]
    if extra is None:
        return without
    return [
        each
        for each in found
        if each.marker and each.marker.evaluate({'extra': extra}) and each not in without
    ]


def closure(extra: str) -> set[str]:
    """Return the names of all distributions that are installed with the package and an extra."""
    names: set[str] = set()
    done: set[tuple[str, str | None]] = set()
    missing: list[tuple[str, str | None]] = [(PACKAGE, None), (PACKAGE, extra)]
    while missing:
        found = missing.pop()
        if found in done:
            continue
        done.add(found)
        names.add(canonicalize_name(found[0]))
        for each in required(*found):
            missing += [(each.name, None), *((each.name, part) for part in each.extras)]
    return names


class Absent(MetaPathFinder):
    """Finds that modules are not installed.

    :param names: the names of modules at the top.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        """Raise :class:`ModuleNotFoundError` for these modules, and leave others to others."""
        if name.partition('.')[0] in self._names:
            raise ModuleNotFoundError(f'No module named {name!r}, in this extra', name=name)
        return None


def main() -> None:
    """Run the module that the command line names, with the arguments that follow."""
    extra, module, *arguments = sys.argv[1:]
    installed = closure(extra)
    absent = {
        name
        for name, distributions in packages_distributions().items()
        if installed.isdisjoint(map(canonicalize_name, distributions))
    }
    for name in list(sys.modules):  # such as packaging, which this module has needed itself
        if name.partition('.')[0] in absent:
            del sys.modules[name]
    sys.meta_path.insert(0, Absent(absent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name='__main__', alter_sys=True)


if __name__ == '__main__':
    main()
