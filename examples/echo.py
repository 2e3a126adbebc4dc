"""An echo service: `python -m examples.echo` serves; with an address it asks.

python -m examples.echo
python -m examples.echo /ip4/127.0.0.1/tcp/PORT/p2p/ID hello
"""

import sys

import trio

import p2p

ECHO = "/echo/1"


async def echo(stream: p2p.Stream) -> None:
    """Send back what comes, until the peer ends its side."""
    while data := await stream.receive_some():
        await stream.send_all(data)


async def main(address: str | None = None, text: str = "hello") -> None:
    """Serve, or ask the service at `address`."""
    listen = [] if address else ["/ip4/127.0.0.1/tcp/0"]
    async with p2p.open_network(p2p.Identity.generate(), listen=listen) as network:
        if address is None:
            await network.serve(ECHO, echo)
            print(network.addresses[0], flush=True)
            await trio.sleep_forever()
        peer_id = await network.connect(address)
        async with network.open_stream(peer_id, ECHO) as stream:
            await stream.send_all(text.encode())
            await stream.send_eof()
            print(b"".join([part async for part in stream]).decode(), flush=True)


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
