"""A switch on real sockets: the switchboard over our own TCP, Noise and Yamux.

The rule: when the block is left, by any path, no task, socket or listener remains.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from p2p.backend.tcp import open_transport
from p2p.identity import Identity
from p2p.lifetime import open_background
from p2p.limits import Limits
from p2p.switchboard import Switchboard


@asynccontextmanager
async def open_switch(identity: Identity, limits: Limits) -> AsyncIterator[Switchboard]:
    """A switch that does not listen yet (see `Switchboard.listen`); closed with the block."""
    async with open_background() as nursery:
        switch = Switchboard(identity.peer_id, limits, nursery)
        async with open_transport(identity, limits, switch) as transport:
            switch.attach(transport)
            try:
                yield switch
            finally:
                with trio.CancelScope(shield=True):
                    await switch.aclose()


__all__ = ["open_switch"]
