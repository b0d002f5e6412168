"""Prints what each scenario of the model shows."""

from __future__ import annotations

import time

from .exploration import explore
from .scenarios import SCENARIOS


def main() -> None:
    """Print what each scenario shows."""
    print(f'{"scenario":<52} {"without":<42} {"states":>7}  seconds  result')
    for scenario in SCENARIOS:
        for removed in (None, *scenario.shows):
            start = time.perf_counter()
            result = explore(scenario, removed)
            seconds = time.perf_counter() - start
            print(
                f'{scenario.name:<52} {removed or "-":<42} {result.states:>7}  {seconds:7.1f}  '
                f'{result.broken or "holds"}',
                flush=True,
            )
            if result.way:
                print('    ' + ' | '.join(result.way))


if __name__ == '__main__':
    main()
