"""Inputs at random for whatever reads what others have written. Each test counts them."""
