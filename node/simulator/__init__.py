"""Deterministic simulation of whole networks over the real engine, codec and state transition."""
