"""Runs a selection of the tests with each supported version of Python, SQLAlchemy, PostgreSQL and
Redis that the machine has: ``python -m tests.versions``.

The package's own tests run with one version of each. This module knows nothing of what they test.
"""
