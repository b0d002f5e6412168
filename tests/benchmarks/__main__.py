"""``python -m tests.benchmarks``: measure, print the tables, write files."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from rich.console import Console

from . import (
    case_books,
    case_busy,
    case_conflicts,
    case_detection,
    case_flush,
    case_herd,
    case_hit,
    case_http,
    case_morepath,
    case_policies,
    case_responses,
    case_scale,
    case_tree,
    case_triggers,
    case_warm,
    plots,
    reporting,
)
from .context import QUICK, Context, Sizes
from .results import CaseResult

Case = Callable[[Context], CaseResult | list[CaseResult]]

CASES: dict[str, Case] = {
    'hit': case_hit.run,
    'warm': case_warm.run,
    'books': case_books.run,
    'flush': case_flush.run,
    'policies': case_policies.run,
    'herd': case_herd.run,
    'busy': case_busy.run,
    'conflicts': case_conflicts.run,
    'morepath': case_morepath.run,
    'http': case_http.run,
    'responses': case_responses.run,
    'tree': case_tree.run,
    'scale': case_scale.run,
    'detection': case_detection.run,
    'triggers': case_triggers.run,
}
#: Of tables that go to a file or a pipe.
WIDTH = 140
DOCS = Path(__file__).parents[2] / 'docs'


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m tests.benchmarks', description=__doc__)
    parser.add_argument('--quick', action='store_true', help='less of everything')
    parser.add_argument('--only', nargs='+', choices=CASES, metavar='CASE', help=', '.join(CASES))
    parser.add_argument(
        '--out', type=Path, default=Path('benchmark-results'), metavar='DIR',
        help='for the results and the environments of the other packages',
    )  # fmt: skip
    parser.add_argument(
        '--docs', action='store_true', help='also renew docs/performance.rst and its plots'
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cases; 1 if one of them failed."""
    options = parse(arguments)
    if options.docs and options.only:
        raise SystemExit('--docs needs all cases: leave --only away')
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    options.out.mkdir(parents=True, exist_ok=True)
    out = options.out.resolve()
    # nothing in there is to be committed
    (out / '.gitignore').write_text('*\n')
    about = reporting.machine(options.quick)
    results: list[CaseResult] = []
    failed = False
    with ExitStack() as stack:
        sizes = QUICK if options.quick else Sizes()
        context = Context(out, stack, sizes, console.print)
        for name in options.only or CASES:
            start = perf_counter()
            try:
                found = CASES[name](context)
            except Exception:
                # the other cases may do all the same
                failed = True
                console.print_exception()
                continue
            for result in found if isinstance(found, list) else [found]:
                results.append(result)
                reporting.show(console, result)
            console.print(f'{name}: {perf_counter() - start:.0f} s\n')
            reporting.write_json(out / 'results.json', results, about)
    for result in results:
        plots.draw(result, out)
        if options.docs and not failed:
            plots.draw(result, DOCS / 'plots')
    if options.docs and not failed:
        reporting.write_docs(DOCS / 'performance.rst', results, about)
    console.print(f'Written to {options.out}')
    return int(failed)


if __name__ == '__main__':
    raise SystemExit(main())
