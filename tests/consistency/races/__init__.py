"""The scenarios of ``test_interleavings.py``, by what the race is about.

Each gives what it found wrong, and nothing if the promise holds.
"""
