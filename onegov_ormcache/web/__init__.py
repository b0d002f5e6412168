"""The layer for Morepath and WSGI; no other room imports Morepath, Dectate or WebOb."""
