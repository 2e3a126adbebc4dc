"""The tensor protocol and its queue."""
