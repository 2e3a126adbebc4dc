"""The network in one process, for tests and simulations: seeded latency, loss and partitions."""

from p2p.memory.hub import MemoryHub, open_hub
from p2p.memory.wire import Weather

__all__ = ["MemoryHub", "Weather", "open_hub"]
