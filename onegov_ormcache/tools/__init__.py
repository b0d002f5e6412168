"""Tools beside the cache: the command line and the demo."""
