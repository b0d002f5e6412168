"""The Django packages' side: run by the Python of their own environment, told by JSON lines.

It imports nothing of this package. Its one argument is the configuration as JSON; each
line of its input names what to do, each line of its output tells what that took.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CONFIG = json.loads(sys.argv[1])
KIND = CONFIG['kind']


def configure() -> None:
    import django  # type: ignore[import-not-found]
    from django.conf import settings  # type: ignore[import-not-found]

    database = {
        'ENGINE': 'django.db.backends.postgresql',
        **CONFIG['database'],
        'CONN_MAX_AGE': None,
        'OPTIONS': {'options': f'-c search_path={CONFIG["schema"]}'},
    }
    redis_cache = {
        'BACKEND': 'django.core.cache.backends.redis.RedisCache',
        'LOCATION': CONFIG['redis_url'],
    }
    # the objects that cacheops keeps are of an installed application; this script is it
    sys.modules['bench'] = sys.modules['__main__']
    apps = {'django': [], 'cachalot': ['cachalot'], 'cacheops': ['cacheops']}[KIND]
    settings.configure(
        INSTALLED_APPS=['bench', *apps],
        DATABASES={'default': database},
        CACHES={'default': redis_cache},
        DEFAULT_AUTO_FIELD='django.db.models.AutoField',
        CACHEOPS_REDIS=CONFIG['redis_url'],
        CACHEOPS_PREFIX=prefix,
        CACHEOPS={
            'bench.*': {'ops': 'all', 'timeout': 3600, 'lock': CONFIG.get('lock', False)},
        },
    )
    django.setup()


def prefix(_: object) -> str:
    return str(CONFIG['schema'])


configure()

from django.db import connection, models, transaction  # type: ignore[import-not-found]  # noqa: E402


class Item(models.Model):  # type: ignore[misc]
    category = models.IntegerField()
    level = models.IntegerField()
    name = models.CharField(max_length=100)
    value = models.IntegerField()

    class Meta:
        app_label = 'bench'
        db_table = 'items'


class Node(models.Model):  # type: ignore[misc]
    parent_id = models.IntegerField(null=True)
    title = models.CharField(max_length=100)

    class Meta:
        app_label = 'bench'
        db_table = 'nodes'


def items_of(number: int, role: int | None = None) -> Any:
    query: Any = Item.objects.filter(category=number % CONFIG['categories'])
    if role is not None:
        query = query.filter(level__lte=role)
    return query.order_by('id').values_list('id', 'name')


def per_call(function: Callable[..., Any], repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - start) / repeat


def requests(properties: int, repeat: int, roles: int) -> float:
    def request(role: int | None = None) -> None:
        for number in range(properties):
            tuple(items_of(number, role))

    if not roles:
        return per_call(request, repeat)
    return sum(per_call(lambda role=role: request(role), repeat) for role in range(roles))


def change(objects: int) -> float:
    with transaction.atomic():
        found = list(Item.objects.order_by('id')[:objects])
        for item in found:
            item.value += 1
        start = time.perf_counter()
        for item in found:
            item.save(update_fields=['value'])
    return time.perf_counter() - start


def tree(repeat: int) -> float:
    return per_call(build_tree, repeat)


def build_tree() -> dict[str, Any]:
    found: dict[int, dict[str, Any]] = {}
    for id, parent_id, title in Node.objects.order_by('id').values_list(
        'id', 'parent_id', 'title'
    ):
        node = found[id] = {'id': id, 'title': title, 'children': []}
        if parent_id is not None:
            found[parent_id]['children'].append(node)
    return found[0]


def herd(threads: int, seconds: float, at: float) -> dict[str, Any]:
    """All threads read one cold value at the same moment; each run of its query takes long."""
    runs: list[str] = []
    lock = threading.Lock()

    def slow(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        with lock:
            runs.append(sql)
        time.sleep(seconds)
        return execute(sql, params, many, context)

    def reader() -> None:
        connection.ensure_connection()
        with connection.execute_wrapper(slow):
            time.sleep(max(0.0, at - time.time()))
            tuple(items_of(0))
        connection.close()

    together = [threading.Thread(target=reader) for _ in range(threads)]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    return {'runs': len(runs), 'seconds': time.time() - at}


def read_books() -> tuple[float, list[list[Any]]]:
    """Read items by their ids; return the seconds, and their names and values."""
    start = time.perf_counter()
    books = Item.objects.values_list('name', 'value')
    found = [list(books.get(id=id)) for id in CONFIG['books']['ids']]
    return time.perf_counter() - start, found


def rename_book() -> None:
    with transaction.atomic():
        book = Item.objects.get(id=CONFIG['books']['renamed'])
        book.name += '!'
        book.save(update_fields=['name'])


def change_all() -> None:
    """Change all items by one statement, of which the cache is told or not."""
    items = Item.objects.all()
    change = items.invalidated_update if CONFIG['books']['is_told'] else items.update
    change(value=models.F('value') + 1)


def empty() -> None:
    """Drop the cached items."""
    if KIND == 'cacheops':
        from cacheops import invalidate_model  # type: ignore[import-not-found]

        invalidate_model(Item)


@contextmanager
def counted() -> Iterator[list[int]]:
    count = [0]

    def see(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        count[0] += 1
        return execute(sql, params, many, context)

    with connection.execute_wrapper(see):
        yield count


DO: dict[str, Callable[..., Any]] = {
    'requests': requests,
    'change': change,
    'tree': tree,
    'herd': herd,
    'read_books': read_books,
    'rename_book': rename_book,
    'change_all': change_all,
    'empty': empty,
}


def main() -> None:
    connection.ensure_connection()
    print(json.dumps({'ready': True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        do = DO[order.pop('do')]
        # the counter costs a little, so it is there only when it is asked for
        if order.pop('count', False):
            with counted() as count:
                result = do(**order)
            print(json.dumps({'result': result, 'sql': count[0]}), flush=True)
        else:
            print(json.dumps({'result': do(**order)}), flush=True)


if __name__ == '__main__':
    main()
