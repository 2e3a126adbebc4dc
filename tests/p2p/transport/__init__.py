"""Tests of p2p's transport."""
