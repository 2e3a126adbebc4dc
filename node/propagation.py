"""How blocks, votes and transactions travel: gossip for what is new, direct streams for the rest.

Rule: nothing is relayed that the engine or the mempool has not judged. Gossip topics are
`/agora/<chain id 8>/{tx,block,cert,vote}/1`; a message that was seen is never carried again, so
what is sent again after a stall goes by `/agora/direct/1`, one stream per peer and bundle.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import trio

from consensus.block import BODY_BYTES_MAX
from consensus.engine_message import Message, ProposalMessage, decode_message, encode_message
from consensus.engine_port import Received
from consensus.engine_reception import Judgement
from consensus.errors import DecodeError
from consensus.transaction import TRANSACTION_BYTES_MAX, Transaction, decode_transaction
from consensus.types import ChainId
from consensus.vote import Certificate, Vote
from node.sync.frames import read_frame, write_frame
from p2p.errors import NetworkError
from p2p.identity import PeerId
from p2p.network import Message as Gossiped
from p2p.network import Network, Stream, TopicOptions, Verdict

logger = logging.getLogger("agora.propagation")

DIRECT_PROTOCOL: Final = "/agora/direct/1"
DIRECT_MESSAGES_MAX: Final = 512  # of one bundle: certificates of 128 views, votes, a proof
DIRECT_BYTES_MAX: Final = 4 * 1024 * 1024
DIRECT_DEADLINE_S: Final = 10.0
MESSAGE_BYTES_MAX: Final = BODY_BYTES_MAX + 64 * 1024  # a proposal with the largest body
OUTBOX_PEERS_MAX: Final = 256  # bundles under way at once; more are dropped, and sent again later
PUBLISH_BACKLOG: Final = 256  # messages waiting to be handed to gossip
TRANSACTION_BACKLOG: Final = 1_024  # own transactions waiting for the same: a block's worth

_VERDICTS: Final = {
    Judgement.ACCEPT: Verdict.ACCEPT,
    Judgement.IGNORE: Verdict.IGNORE,
    Judgement.REJECT: Verdict.REJECT,
}

Judge = Callable[[Message], Judgement]
Deliver = Callable[[Received], bool]
TakeTransaction = Callable[[Transaction], Verdict]


class Propagation:
    """Carries the engine's messages and the mempool's transactions over one network.

    `judge` decides what is relayed, `deliver` takes what was accepted, `take_transaction` keeps a
    transaction or says why not. Everything here runs on the trio thread.
    """

    def __init__(
        self,
        network: Network,
        chain_id: ChainId,
        *,
        judge: Judge,
        deliver: Deliver,
        take_transaction: TakeTransaction,
    ) -> None:
        prefix = f"/agora/{chain_id.hex()[:8]}"
        self._network = network
        self._judge = judge
        self._deliver = deliver
        self._take_transaction = take_transaction
        self._topics = {
            ProposalMessage: f"{prefix}/block/1",
            Certificate: f"{prefix}/cert/1",
            Vote: f"{prefix}/vote/1",
        }
        self._transaction_topic = f"{prefix}/tx/1"
        self._outbox: dict[PeerId, Sequence[Message]] = {}
        self._sending: set[PeerId] = set()
        self._nursery: trio.Nursery | None = None
        # Two queues: a vote never waits behind transactions for a slow peer.
        self._send, self._outgoing = trio.open_memory_channel[tuple[str, bytes]](PUBLISH_BACKLOG)
        self._send_transaction, self._outgoing_transactions = trio.open_memory_channel[bytes](
            TRANSACTION_BACKLOG
        )
        self.counters: Counter[str] = Counter()

    async def run(self) -> None:
        """Carry until cancelled."""
        await self._network.serve(DIRECT_PROTOCOL, self._receive_bundle)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for topic in sorted(self._topics.values()):
                    nursery.start_soon(self._subscribe, topic, MESSAGE_BYTES_MAX, self._judged)
                nursery.start_soon(
                    self._subscribe,
                    self._transaction_topic,
                    TRANSACTION_BYTES_MAX,
                    self._judged_transaction,
                )
                nursery.start_soon(self._publish_transactions)
                async for topic, data in self._outgoing:
                    await self._network.publish(topic, data)
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                await self._network.unserve(DIRECT_PROTOCOL)

    def broadcast(self, message: Message) -> None:
        """Publish by gossip; forms that have no topic go directly to everybody."""
        topic = self._topics.get(type(message))
        if topic is None:
            self.resend([message])
            return
        self._publish(topic, encode_message(message))

    def publish_transaction(self, transaction: Transaction) -> None:
        """Publish a transaction that the mempool holds."""
        try:
            self._send_transaction.send_nowait(transaction.encoded)
        except trio.WouldBlock:
            self.counters["publications_dropped"] += 1

    async def _publish_transactions(self) -> None:
        async for encoded in self._outgoing_transactions:
            await self._network.publish(self._transaction_topic, encoded)

    def resend(self, messages: Sequence[Message]) -> None:
        """Send to every connected peer; replaces what still waits for one."""
        for peer in sorted(self._network.peers):
            self.send(peer, messages)

    def send(self, to: str, messages: Sequence[Message]) -> None:
        """Send to one connected peer; a bundle that waits behind another is replaced."""
        peer = PeerId(to)
        if self._nursery is None or peer not in self._network.peers:
            return
        if peer in self._sending:
            self._outbox[peer] = messages
        elif len(self._sending) < OUTBOX_PEERS_MAX:
            self._sending.add(peer)
            self._nursery.start_soon(self._send_bundles, peer, messages)
        else:
            self.counters["bundles_dropped"] += 1

    def _publish(self, topic: str, data: bytes) -> None:
        try:
            self._send.send_nowait((topic, data))
        except trio.WouldBlock:
            self.counters["publications_dropped"] += 1

    async def _subscribe(
        self, topic: str, bytes_max: int, validate: Callable[[Gossiped], Verdict]
    ) -> None:
        options = TopicOptions(payload_bytes_max=bytes_max)
        async with self._network.subscribe(topic, validate=validate, options=options) as messages:
            async for _ in messages:
                pass  # delivered by the judge, at once

    def _judged(self, gossiped: Gossiped) -> Verdict:
        if gossiped.received_from == self._network.peer_id:
            return Verdict.ACCEPT
        try:
            message = decode_message(gossiped.data)
        except DecodeError:
            # [REJECT] not the one encoding of a message
            return self._counted(Verdict.REJECT)
        if self._topics.get(type(message)) != gossiped.topic:
            # [REJECT] a message of another topic
            return self._counted(Verdict.REJECT)
        verdict = _VERDICTS[self._judge(message)]
        received = Received(message=message, source=str(gossiped.received_from))
        # Of another epoch, or not decidable yet: not relayed, but the engine learns from it.
        if verdict is not Verdict.REJECT and not self._deliver(received):
            # [IGNORE] too busy; it may come again
            return self._counted(Verdict.IGNORE)
        return self._counted(verdict)

    def _judged_transaction(self, gossiped: Gossiped) -> Verdict:
        if gossiped.received_from == self._network.peer_id:
            return Verdict.ACCEPT
        try:
            transaction = decode_transaction(gossiped.data)
        except DecodeError:
            # [REJECT] not the one encoding of a transaction
            return self._counted(Verdict.REJECT)
        return self._counted(self._take_transaction(transaction))

    def _counted(self, verdict: Verdict) -> Verdict:
        self.counters[f"gossip_{verdict.name.lower()}"] += 1
        return verdict

    async def _send_bundles(self, peer: PeerId, messages: Sequence[Message]) -> None:
        bundle: Sequence[Message] | None = messages
        try:
            while bundle is not None:
                await self._send_bundle(peer, bundle)
                bundle = self._outbox.pop(peer, None)
        finally:
            self._sending.discard(peer)
            self._outbox.pop(peer, None)

    async def _send_bundle(self, peer: PeerId, messages: Sequence[Message]) -> None:
        try:
            with trio.fail_after(DIRECT_DEADLINE_S):
                async with self._network.open_stream(peer, DIRECT_PROTOCOL) as stream:
                    for message in messages[:DIRECT_MESSAGES_MAX]:
                        await write_frame(stream, encode_message(message))
                    await stream.send_eof()
        except (NetworkError, trio.TooSlowError) as error:
            self.counters["bundles_failed"] += 1
            logger.debug("bundle to %s: %s", peer, error)

    async def _receive_bundle(self, stream: Stream) -> None:
        """Take one bundle. Raises DecodeError or trio.TooSlowError: the stream is reset."""
        total = 0
        with trio.fail_after(DIRECT_DEADLINE_S):
            for _ in range(DIRECT_MESSAGES_MAX):
                frame = await read_frame(stream, bytes_max=MESSAGE_BYTES_MAX, end_ok=True)
                if not frame:
                    return
                total += len(frame)
                if total > DIRECT_BYTES_MAX:
                    raise DecodeError(f"a bundle of more than {DIRECT_BYTES_MAX} bytes")
                message = decode_message(frame)
                self._deliver(Received(message=message, source=str(stream.peer_id)))
