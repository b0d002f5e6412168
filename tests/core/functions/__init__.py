"""Tests of properties with arguments, rows, expiry and evictions by hand."""
