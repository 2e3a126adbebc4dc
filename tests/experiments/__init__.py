"""Tests of the experiments, reduced: the claims, not the sizes."""
