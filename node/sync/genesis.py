"""The genesis of a network, asked of the peers through which a node joins it.

Rule: trusted on first use, and only when every bootstrap peer that answers says the same, or when
it has the chain id that was asked for. It is bounded before it is decoded.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import trio

from consensus.errors import DecodeError
from consensus.genesis import GENESIS_BYTES_MAX, Genesis, decode_genesis
from node.errors import CallError, ChainMismatch, JoinError, RemoteError
from p2p.errors import NetworkError
from p2p.identity import Identity, PeerId
from p2p.network import Network
from p2p.stack import open_network

from .client import ask
from .messages import GENESIS_PIECE_BYTES, Question, Request

GENESIS_DEADLINE_S: Final = 30.0  # bootstrap peers may still be starting
OTHERS_S: Final = 2.0  # for the other bootstrap peers, after the first has answered
DIAL_PAUSE_S: Final = 0.25


class NetworkOpener(Protocol):
    """`p2p.open_network`, or a `MemoryHub`'s."""

    def __call__(
        self, identity: Identity, *, listen: Sequence[str] = (), bootstrap: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Network]:
        """Open a network while the block lasts."""
        ...


async def fetch_genesis(
    bootstrap: Sequence[str], *, chain_id: str | None, opener: NetworkOpener = open_network
) -> Genesis:
    """Ask the bootstrap peers for their genesis, under a throw-away identity.

    Raises ChainMismatch when it is not `chain_id` (hex) or the peers disagree, JoinError when none
    answers within GENESIS_DEADLINE_S.
    """
    found: dict[str, Genesis] = {}
    failures: list[str] = []

    async def ask_one(network: Network, address: str) -> None:
        while True:
            try:
                peer = await network.connect(address)
                found[address] = await _ask_genesis(network, peer)
                waiting.deadline = min(waiting.deadline, trio.current_time() + OTHERS_S)
                return
            except (NetworkError, CallError) as error:
                failures.append(str(error))
            await trio.sleep(DIAL_PAUSE_S)

    async with opener(Identity.generate()) as network:
        with trio.move_on_after(GENESIS_DEADLINE_S) as waiting:
            async with trio.open_nursery() as nursery:
                for address in bootstrap:
                    nursery.start_soon(ask_one, network, address)
    if not found:
        reason = failures[-1] if failures else "no answer"
        raise JoinError(f"no bootstrap peer gave a genesis in {GENESIS_DEADLINE_S:g} s: {reason}")
    chains = sorted({genesis.chain_id.hex() for genesis in found.values()})
    if chain_id is not None and chains != [chain_id]:
        raise ChainMismatch(f"the bootstrap peers run chain {', '.join(chains)}, not {chain_id}")
    if len(chains) > 1:
        raise ChainMismatch(f"the bootstrap peers disagree: chains {', '.join(chains)}")
    return next(iter(found.values()))


async def _ask_genesis(network: Network, peer: PeerId) -> Genesis:
    data = b""
    for number in range(GENESIS_BYTES_MAX // GENESIS_PIECE_BYTES + 1):
        items = await ask(network, peer, Request(question=Question.GENESIS, number=number))
        if len(items) != 1:
            raise RemoteError(f"peer {peer} gave no genesis")
        data += items[0]
        if len(items[0]) < GENESIS_PIECE_BYTES:
            break
    try:
        return decode_genesis(data)
    except DecodeError as error:
        raise RemoteError(f"peer {peer} gave no valid genesis: {error}") from error
