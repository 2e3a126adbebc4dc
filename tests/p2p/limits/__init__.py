"""Every bound of `Limits` is reached: what then happens, and what counts it."""
