"""What a program may change of gossipsub, in one value.

The rule: the defaults suit a network of thousands; all nodes of a topic must agree on its rules,
each may choose its mesh and its scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from p2p.gossipsub.parameters import MeshParameters
from p2p.gossipsub.score import PeerScoring
from p2p.gossipsub.topic import TopicRules


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipOptions:
    """Degrees and times of the mesh, peer scores, and by name the rules of single topics.

    `topics` says what `TopicOptions` cannot: a lax signature policy, another message id, score
    weights. A topic that is named there takes its size and signatures from there too; of the
    `TopicOptions` of its subscription only the backlog and the overflow policy still count.
    """

    mesh: MeshParameters = field(default_factory=MeshParameters)
    scoring: PeerScoring = field(default_factory=PeerScoring)
    topics: Mapping[str, TopicRules] = field(default_factory=dict)


__all__ = ["GossipOptions"]
