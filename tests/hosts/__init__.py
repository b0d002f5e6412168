"""Hosts: programs that keep their own engines, sessions, current schema and transactions."""
