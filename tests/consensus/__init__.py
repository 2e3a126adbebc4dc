"""Tests of the ledger and of block ordering."""
