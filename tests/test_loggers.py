"""The package logs under the names of its modules."""

from __future__ import annotations

import importlib
import logging
import pkgutil

import onegov_ormcache


def test_each_module_has_a_logger_of_its_own() -> None:
    """Each module that logs does so under its own name, below `onegov_ormcache`, so that an
    application can choose what it hears by module, and silence all at one place."""
    found = 0
    for module in pkgutil.walk_packages(onegov_ormcache.__path__, 'onegov_ormcache.'):
        # the demo's application has a logger of its own, as applications have
        if module.name.endswith('__main__') or '.townhall' in module.name:
            continue
        log = vars(importlib.import_module(module.name)).get('log')
        if isinstance(log, logging.Logger):
            assert log.name == module.name
            found += 1
    assert found > 15
