"""The wire contract: vectors, their generator, and an independent reader."""
