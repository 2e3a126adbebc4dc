"""Small complete programs on the network package; each runs by `python -m examples.NAME`."""
