"""Our transport alone under a plain py-libp2p host: same wire, same py-libp2p program.

python -m examples.plain_libp2p            # two hosts in one process, one ping
"""

import multiaddr
import trio
from libp2p import new_host
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr

import p2p
from p2p.backend.transport import AgoraTransport

PING = TProtocol("/ipfs/ping/1.0.0")


async def main() -> None:
    """One host asks the other for an echo of 32 bytes."""
    transports = [AgoraTransport(p2p.Identity.generate()) for _ in range(2)]
    server, client = (new_host(key_pair=t.key_pair, transports=[t]) for t in transports)
    anywhere = multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")
    async with server.run(listen_addrs=[anywhere]), client.run(listen_addrs=[]):
        [address] = server.get_addrs()
        print(address, flush=True)
        await client.connect(info_from_p2p_addr(address))
        stream = await client.new_stream(server.get_id(), [PING])
        await stream.write(b"0123456789abcdef" * 2)
        print(await stream.read(32))
        await stream.close()


if __name__ == "__main__":
    trio.run(main)
