"""Tests of p2p's noise."""
