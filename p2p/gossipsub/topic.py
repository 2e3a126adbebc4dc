"""The rules of one topic: sizes, signatures, ids and score weights.

The rule: all nodes of a topic must agree on everything here except the score weights, or they will
reject each other's messages (libp2p/specs pubsub/README.md, "Message Identification").
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from p2p.gossipsub.message import (
    MessageIdFunction,
    SignaturePolicy,
    WireMessage,
    author_of,
    content_id,
    is_signed_by,
    origin_id,
)
from p2p.gossipsub.score import TopicScoring

PAYLOAD_BYTES_MAX = 1024 * 1024
"""The default; larger bodies are announced by hash and fetched by stream."""


class Fault(enum.Enum):
    """Why a message breaks the rules of its topic."""

    OVERSIZE = "oversize"
    SIGNATURE = "signature"
    UNKNOWN_AUTHOR = "unknown author"  # cannot be verified here: ignored, not rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicRules:
    """How the messages of a topic look; `message_id` None means the default of the policy."""

    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    signatures: SignaturePolicy = SignaturePolicy.STRICT_NO_SIGN
    message_id: MessageIdFunction | None = None
    scoring: TopicScoring = field(default_factory=TopicScoring)

    def __post_init__(self) -> None:
        if self.payload_bytes_max <= 0:
            raise ValueError("payload_bytes_max must be positive")

    def id_of(self, message: WireMessage) -> bytes:
        """The message id by this topic's function; at most 128 bytes are used."""
        if self.message_id is not None:
            return self.message_id(message)
        if self.signatures is SignaturePolicy.STRICT_SIGN:
            return origin_id(message)
        return content_id(message)

    def fault_of(self, message: WireMessage) -> Fault | None:
        """What is wrong with a message before its content is judged; None when nothing is."""
        # [REJECT] the payload is larger than the topic allows
        if len(message.data) > self.payload_bytes_max:
            return Fault.OVERSIZE
        match self.signatures:
            case SignaturePolicy.STRICT_NO_SIGN:
                # [REJECT] an unsigned topic carries no author, number, signature or key
                if message.source or message.seqno or message.signature or message.key:
                    return Fault.SIGNATURE
            case SignaturePolicy.LAX_NO_SIGN:
                pass
            case SignaturePolicy.STRICT_SIGN:
                return _signature_fault(message)
        return None

    def to_forward(self, message: WireMessage) -> WireMessage:
        """What is sent on: a lax topic drops what a strict neighbour would reject.

        Unless ids come from `from` and `seqno`, which must then stay.
        """
        if self.signatures is SignaturePolicy.LAX_NO_SIGN and self.message_id is None:
            return WireMessage(message.topic, message.data)
        return message


def _signature_fault(message: WireMessage) -> Fault | None:
    # [REJECT] author, number or signature is missing
    if not message.source or not message.seqno or not message.signature:
        return Fault.SIGNATURE
    author = author_of(message)
    # [IGNORE] the author's key is not Ed25519
    if author is None:
        return Fault.UNKNOWN_AUTHOR
    # [REJECT] the signature is not the author's
    return None if is_signed_by(message, author) else Fault.SIGNATURE
