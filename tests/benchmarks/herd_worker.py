"""One process of a cold herd: its threads read one value at a given moment."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from time import sleep, time
from typing import Any

from tests.support.counting import FileRuns

from . import baseline_seed, contestants
from .baseline_seed import Seed
from .contestants import Contestant, Dogpile, OrmCache, Plain


def slow(function: Any, runs: FileRuns, seconds: float) -> Any:
    """The function, which counts its runs and takes its time."""

    def run(*arguments: Any) -> Any:
        runs('creator')
        sleep(seconds)
        return function(*arguments)

    return run


def make(settings: dict[str, Any]) -> Any:
    """A function for each thread that reads the value once."""
    runs, seconds = FileRuns(Path(settings['runs'])), settings['seconds']
    for module in (contestants, baseline_seed):
        # what all creators call, whichever way they are cached
        module.items_of = slow(module.items_of, runs, seconds)  # type: ignore[attr-defined]
    servers = settings['dsn'], settings['redis_url'], settings['schema']
    name = settings['contestant']
    if name == 'no cache':
        # a request's session belongs to one thread
        return [Plain(settings['dsn'], settings['schema']) for _ in range(settings['threads'])]
    if name == 'dogpile.cache':
        shared = [Dogpile(*servers) for _ in range(settings['threads'])]
        for one in shared:
            one.region = shared[0].region
        return shared
    one = {'onegov_ormcache': OrmCache, 'seed design': Seed}[name](*servers)
    return [one] * settings['threads']


def main() -> None:
    settings = json.loads(sys.argv[1])
    readers: list[Contestant] = make(settings)
    print(json.dumps('ready'), flush=True)
    at = float(sys.stdin.readline())
    failures: list[BaseException] = []

    def read(reader: Contestant) -> None:
        sleep(max(0.0, at - time()))
        try:
            reader.requests(1, 1)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=read, args=[reader]) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not failures:
        print(json.dumps(time() - at), flush=True)


if __name__ == '__main__':
    main()
