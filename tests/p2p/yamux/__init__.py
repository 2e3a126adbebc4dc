"""Tests of p2p's yamux."""
