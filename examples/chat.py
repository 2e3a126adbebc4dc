"""A chat over gossip: each line typed is published, each line published by others is printed.

python -m examples.chat
python -m examples.chat /ip4/127.0.0.1/tcp/PORT/p2p/ID
"""

import sys

import trio

import p2p

TOPIC = "chat"


async def print_messages(messages: p2p.Subscription, own: p2p.PeerId) -> None:
    """Show what others say."""
    async for message in messages:
        if message.received_from != own:
            print(message.data.decode(errors="replace"), flush=True)


async def main(*bootstrap: str) -> None:
    """Join the chat of the peers at `bootstrap`, or begin one."""
    me = p2p.Identity.generate()
    async with (
        p2p.open_network(me, listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=bootstrap) as network,
        network.subscribe(TOPIC) as messages,
        trio.open_nursery() as nursery,
    ):
        print(network.addresses[0], flush=True)
        nursery.start_soon(print_messages, messages, me.peer_id)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            await network.publish(TOPIC, f"{me.peer_id[-6:]}: {line.rstrip()}".encode())
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
