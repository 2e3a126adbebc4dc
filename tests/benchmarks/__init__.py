"""Tests of what the benchmarks tell."""
