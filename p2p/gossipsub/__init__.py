"""Gossipsub v1.1 with live scoring and v1.2 IDONTWANT: publish and subscribe over meshes.

`open_gossip(switch)` gives the port `p2p.network.PubSub` on any `p2p.switch.Switch`. The protocol
itself is the pure machine `p2p.gossipsub.router.Router`.
"""

from p2p.gossipsub.message import SignaturePolicy, content_id, origin_id
from p2p.gossipsub.options import GossipOptions
from p2p.gossipsub.parameters import PROTOCOLS, MeshParameters
from p2p.gossipsub.score import PeerScoring, TopicScoring
from p2p.gossipsub.shell import Gossipsub, open_gossip
from p2p.gossipsub.topic import TopicRules

__all__ = [
    "PROTOCOLS",
    "GossipOptions",
    "Gossipsub",
    "MeshParameters",
    "PeerScoring",
    "SignaturePolicy",
    "TopicRules",
    "TopicScoring",
    "content_id",
    "open_gossip",
    "origin_id",
]
