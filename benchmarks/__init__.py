"""Reproducible side-by-side measurements."""
