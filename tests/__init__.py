"""The tests of onegov_ormcache: folders and files mirror the package."""
