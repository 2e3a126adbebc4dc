"""The real network: the only folder that imports libp2p.

Importing this package imports no libp2p yet; `open_switch` does, when it is first used.
"""

from __future__ import annotations

from p2p.backend.switch import open_switch

__all__ = ["open_switch"]
