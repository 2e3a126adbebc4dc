"""The real network, and the only folder that may import libp2p (`transport.py` and `muxed.py` do).

`open_switch` runs on our own sockets and needs no libp2p; `p2p.backend.transport.AgoraTransport`
lends the same connections to a plain py-libp2p host.
"""

from __future__ import annotations

from p2p.backend.switch import open_switch

__all__ = ["open_switch"]
