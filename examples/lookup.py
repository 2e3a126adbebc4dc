"""A DHT lookup: one peer announces that it has something, another finds out who does.

python -m examples.lookup provide "a recipe"
python -m examples.lookup find "a recipe" /ip4/127.0.0.1/tcp/PORT/p2p/ID
"""

import sys

import trio

import p2p


async def main(verb: str, name: str, *bootstrap: str) -> None:
    """`provide` the name until interrupted, or `find` who provides it."""
    async with p2p.open_network(
        p2p.Identity.generate(), listen=["/ip4/127.0.0.1/tcp/0"], bootstrap=bootstrap
    ) as network:
        async with network.watch_peers() as events:
            print(network.addresses[0], flush=True)
            if bootstrap:
                await events.receive()  # somebody is there to be asked
        if verb == "provide":
            await network.provide(name.encode())
            await trio.sleep_forever()
        peers: list[p2p.PeerId] = []
        while not peers:
            await trio.sleep(0.2)  # the table fills as peers say what they speak
            peers = await network.find_providers(name.encode())
        for peer_id in peers:
            print(peer_id, *network.addresses_of(peer_id), flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
