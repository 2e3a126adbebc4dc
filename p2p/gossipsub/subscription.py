"""The local end of a topic: accepted messages on their way to a reader.

The rule: a reader that falls behind loses messages by its stated policy and sees how many; it never
holds up the router or another reader.
"""

from __future__ import annotations

import trio

from p2p.network import Message, Overflow, Subscription, TopicOptions


class TopicSubscription(Subscription):
    """One reader of one topic; made by `Gossipsub.subscribe`."""

    def __init__(self, topic: str, options: TopicOptions) -> None:
        self._topic = topic
        self._overflow = options.overflow
        self._dropped = 0
        self._send, self._receive = trio.open_memory_channel[Message](options.backlog_messages_max)

    @property
    def topic(self) -> str:
        return self._topic

    @property
    def dropped(self) -> int:
        return self._dropped

    async def receive(self) -> Message:
        """The next message; waits for it.

        Raises:
            trio.EndOfChannel: the network was closed and everything has been read.
            trio.ClosedResourceError: this subscription was closed.
        """
        return await self._receive.receive()

    async def aclose(self) -> None:
        """Stop receiving; what waits is discarded. The topic is left at the end of its block."""
        self._receive.close()
        await trio.lowlevel.checkpoint()

    def put(self, message: Message) -> int:
        """Hand over an accepted message; how many were dropped for it (0 or 1)."""
        try:
            self._send.send_nowait(message)
        except trio.WouldBlock:
            self._dropped += 1
            if self._overflow is Overflow.DROP_OLDEST:
                self._receive.receive_nowait()
                self._send.send_nowait(message)
            return 1
        except trio.BrokenResourceError:
            return 0  # the reader closed it
        return 0

    def end(self) -> None:
        """No more messages will come: the reader gets what waits and then the end."""
        self._send.close()
