"""The town hall in several processes, under load, while things break: see ``__main__.py``."""
