"""Helpers of the tests: real servers, counters of what really happened, and applications.

The servers and the counters import nothing of onegov_ormcache, so that benchmarks and child
processes can use them too, and so that a mistake of the package cannot hide itself there.
"""
