"""What type checkers see of user code: mypy and pyright check these modules in CI.

A line with an error says so to both, and each reports a comment that it does not need. A line that
should be an error and is none fails in the same way. Nothing of it runs, but the modules can be
imported, as far as they make classes.
"""
