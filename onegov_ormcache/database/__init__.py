"""Engines, sessions and transactions, and what statements touch; no caching here."""
