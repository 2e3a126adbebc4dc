"""How the nodes of one chain find each other: by a key of the DHT, and by their heights after.

Rule: what the DHT says is a hint. Nodes provide a key made of chain id and modality; who is found
there is dialled, and only the greeting decides whether it belongs.
"""

import logging
from typing import Final

import trio

from consensus.crypto import H
from consensus.types import ChainId, Modality
from p2p.errors import NetworkError
from p2p.identity import PeerId
from p2p.network import Network

logger = logging.getLogger("agora.discovery")

EAGER_S: Final = 1.0  # between rounds while few peers are known
SETTLED_S: Final = 30.0  # between rounds after
WANTED_PEERS: Final = 8
DIAL_DEADLINE_S: Final = 10.0


def rendezvous(chain_id: ChainId, modality: Modality) -> bytes:
    """The DHT key under which the peers of a chain and modality are found."""
    return H(b"rendezvous", chain_id + bytes([modality]))


async def find_each_other(network: Network, key: bytes) -> None:
    """Provide `key` and dial who else does, until cancelled."""
    provided = False
    eager_rounds = 10
    while True:
        try:
            if not provided and network.peers:
                await network.provide(key)
                provided = True
            for peer in await network.find_providers(key):
                await _dial(network, peer)
        except NetworkError as error:
            logger.debug("discovery: %s", error)
        eager_rounds -= 1
        settled = eager_rounds < 0 and (provided or len(network.peers) >= WANTED_PEERS)
        await trio.sleep(SETTLED_S if settled else EAGER_S)


async def _dial(network: Network, peer: PeerId) -> None:
    if peer == network.peer_id or peer in network.peers:
        return
    try:
        with trio.move_on_after(DIAL_DEADLINE_S):
            await network.connect(peer)
    except NetworkError as error:
        logger.debug("dialling %s: %s", peer, error)
