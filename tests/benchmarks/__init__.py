"""Benchmarks against the alternatives, on a real PostgreSQL and a real Valkey.

``python -m tests.benchmarks --help`` tells how to run them; docs/performance.rst shows
what they found. What can be counted is also asserted, in test_counted_bounds.py.
"""
