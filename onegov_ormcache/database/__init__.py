"""Engines, sessions, transactions and the analysis of statements; no caching here."""
