"""What tests stand on: real servers, and counters of what really happened.

Nothing here imports onegov_ormcache, so that benchmarks and child processes can
use it too, and so that a mistake of the package cannot hide itself here.
"""
