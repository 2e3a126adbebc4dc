"""The contenders of `benchmarks.tensor`: four ways to ask another process for a representation.

The rule: each sends a numpy array `[bs, seq, dim]` float32, has it served by the identity model,
and ends with the answer as a numpy array; each does so as its own project does, limits lifted.

    agora           Dendrite.forward to an exchange server over p2p.open_network; values checked,
                    receipts off
    grpc_aio_tls    grpc.aio, TLS, protobuf `bytes` (the array's bytes in a BytesValue)
    hivemind        hivemind's own RPC through its Go daemons, as its RemoteExpert calls it
    http_bittensor  HTTP/1.1 with bittensor's encoding: msgpack, base64, JSON; a bare application on
                    an ASGI server with h11, as bittensor's is, and the standard library's client

hivemind is not installed here; AGORA_HIVEMIND names a folder that holds it:
`pip install --no-deps --target FOLDER hivemind==1.1.12 prefetch_generator uvloop configargparse
pymultihash sortedcontainers pydantic pydantic-core annotated-types typing-inspection`.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import trio
import trustme
from numpy.typing import NDArray

from benchmarks.measure import answer_commands, tell

HOST = "127.0.0.1"

HIVEMIND_ATTEMPTS = 3
"""Now and then its daemon loses the end of a 16 MiB stream; such a call is made again."""

NAME = "localhost"
DIM = 1_024
GRPC_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Array = NDArray[np.float32]
Ask = Callable[[Array], Awaitable[Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """How one contender serves (telling its address) and how it is asked."""

    serve: Callable[[], Awaitable[None]]
    drive: Callable[[dict[str, Any]], AbstractAsyncContextManager[Ask]]
    runs_on: str = "trio"


def cpu_s() -> float:
    """CPU seconds of this process and of its children, daemons among them."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


async def report_on_trio() -> None:
    """Tell the CPU used whenever asked, until the standard input ends."""

    async def answer(_: dict[str, Any]) -> dict[str, Any]:
        return {"cpu_s": cpu_s()}

    await answer_commands(answer)


async def report_on_asyncio() -> None:
    """As `report_on_trio`."""
    while await asyncio.to_thread(sys.stdin.readline):
        tell(cpu_s=cpu_s())


# Agora


class IdentityModel:
    """What every contender serves; it says that it needs no thread, as the others use none."""

    is_instant = True
    dim = DIM
    vocabulary = 256

    def __init__(self) -> None:
        from tensorwire import Modality

        self.modalities = frozenset({Modality.TENSOR})

    def forward(self, parts: Sequence[Any]) -> Array:
        """The input, uncopied."""
        output: Array = parts[0].tensor.to_numpy()
        return output


async def serve_agora() -> None:
    import p2p
    from node.exchange import Server

    identity = p2p.Identity.generate()
    listen = [f"/ip4/{HOST}/tcp/0"]
    async with p2p.open_network(identity, listen=listen) as network, trio.open_nursery() as nursery:
        await nursery.start(Server(network, IdentityModel(), weight_of=lambda _: 1).run)
        tell(address={"multiaddr": network.addresses[0]})
        await report_on_trio()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def drive_agora(address: dict[str, Any]) -> AsyncIterator[Ask]:
    import p2p
    from node.dendrite import Dendrite
    from tensorwire import Modality, Part, WireTensor

    async with p2p.open_network(p2p.Identity.generate()) as network:
        peer = await network.connect(address["multiaddr"])
        dendrite = Dendrite(network, receipts=False)

        async def ask(array: Array) -> Array:
            part = Part(Modality.TENSOR, WireTensor.from_numpy(array))
            answer = await dendrite.forward(peer, [part], deadline_s=60)
            output: Array = answer.output.to_numpy()
            return output

        yield ask


# gRPC


async def serve_grpc() -> None:
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    async def forward(request: BytesValue, _: Any) -> BytesValue:
        array = np.frombuffer(request.value, np.float32).reshape(-1, 1, DIM)
        return BytesValue(value=array.tobytes())

    authority = trustme.CA()
    certificate = authority.issue_cert(NAME)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    server = grpc.aio.server(options=GRPC_OPTIONS)
    method = grpc.unary_unary_rpc_method_handler(
        forward,
        request_deserializer=BytesValue.FromString,
        response_serializer=BytesValue.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("b.B", {"Forward": method}),)
    )
    credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
    port = server.add_secure_port(f"{HOST}:0", credentials)
    await server.start()
    tell(address={"port": port, "authority": authority.cert_pem.bytes().decode()})
    await report_on_asyncio()
    await server.stop(None)


@asynccontextmanager
async def drive_grpc(address: dict[str, Any]) -> AsyncIterator[Ask]:
    import grpc
    from google.protobuf.wrappers_pb2 import BytesValue

    credentials = grpc.ssl_channel_credentials(address["authority"].encode())
    options = [*GRPC_OPTIONS, ("grpc.ssl_target_name_override", NAME)]
    async with grpc.aio.secure_channel(
        f"{HOST}:{address['port']}", credentials, options=options
    ) as channel:
        call = channel.unary_unary(
            "/b.B/Forward",
            request_serializer=BytesValue.SerializeToString,
            response_deserializer=BytesValue.FromString,
        )

        async def ask(array: Array) -> Array:
            answer = await call(BytesValue(value=array.tobytes()))
            return np.frombuffer(answer.value, np.float32).reshape(array.shape)

        yield ask


# hivemind


def _import_hivemind() -> None:
    folder = os.environ.get("AGORA_HIVEMIND")
    if folder:
        sys.path.insert(0, folder)
    os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")


def _hivemind_servicer() -> Any:
    _import_hivemind()
    from typing import AsyncIterator as Messages  # noqa: UP035 - the one that hivemind looks for

    from hivemind.compression import (
        deserialize_tensor_stream,
        deserialize_torch_tensor,
        serialize_torch_tensor,
    )
    from hivemind.p2p import P2PContext, ServicerBase
    from hivemind.p2p.p2p_daemon import DEFAULT_MAX_MSG_SIZE
    from hivemind.proto import runtime_pb2
    from hivemind.utils.asyncio import amap_in_executor
    from hivemind.utils.streaming import split_for_streaming

    async def rpc_forward(self: Any, request: Any, context: Any) -> Any:
        tensors = [deserialize_torch_tensor(tensor) for tensor in request.tensors]
        return runtime_pb2.ExpertResponse(tensors=[serialize_torch_tensor(t) for t in tensors])

    async def rpc_forward_stream(self: Any, requests: Any, context: Any) -> Any:
        stream = amap_in_executor(lambda message: message.tensors, requests)
        for tensor in await deserialize_tensor_stream(stream):
            for part in split_for_streaming(serialize_torch_tensor(tensor), DEFAULT_MAX_MSG_SIZE):
                yield runtime_pb2.ExpertResponse(tensors=[part])

    request, response = runtime_pb2.ExpertRequest, runtime_pb2.ExpertResponse
    rpc_forward.__annotations__ = {
        "request": request,
        "context": P2PContext,
        "return": response,
    }
    rpc_forward_stream.__annotations__ = {
        "requests": Messages[runtime_pb2.ExpertRequest],
        "context": P2PContext,
        "return": Messages[runtime_pb2.ExpertResponse],
    }
    methods = {"rpc_forward": rpc_forward, "rpc_forward_stream": rpc_forward_stream}
    return type("Identity", (ServicerBase,), methods)


async def serve_hivemind() -> None:
    servicer = _hivemind_servicer()
    from hivemind.p2p import P2P

    node = await P2P.create(host_maddrs=[f"/ip4/{HOST}/tcp/0"])
    await servicer().add_p2p_handlers(node)
    addresses = [str(each) for each in await node.get_visible_maddrs()]
    tell(address={"multiaddrs": addresses, "peer": node.peer_id.to_base58()})
    await report_on_asyncio()
    await node.shutdown()


@asynccontextmanager
async def drive_hivemind(address: dict[str, Any]) -> AsyncIterator[Ask]:
    servicer = _hivemind_servicer()
    import torch
    from hivemind.compression import serialize_torch_tensor
    from hivemind.moe.client.expert import expert_forward
    from hivemind.p2p import P2P, PeerID

    node = await P2P.create(host_maddrs=[f"/ip4/{HOST}/tcp/0"], initial_peers=address["multiaddrs"])
    stub = servicer.get_stub(node, PeerID.from_base58(address["peer"]))

    async def ask(array: Array) -> Array:
        tensor = torch.from_numpy(array)
        for _ in range(HIVEMIND_ATTEMPTS):
            with suppress(RuntimeError):  # its shape is not that of the bytes that came
                sent = [serialize_torch_tensor(tensor)]
                (answer,) = await expert_forward("", (tensor,), sent, stub)
                output: Array = answer.numpy()
                return output
        raise RuntimeError("every answer was cut short")

    yield ask
    await node.shutdown()


# HTTP


def _pack(array: Array) -> bytes:
    import msgpack

    packed = msgpack.packb(
        {
            b"nd": True,
            b"type": array.dtype.str,
            b"kind": b"",
            b"shape": array.shape,
            b"data": array.tobytes(),
        }
    )
    tensor = {"buffer": base64.b64encode(packed).decode(), "dtype": "float32"}
    return json.dumps({"inputs": tensor | {"shape": list(array.shape)}}).encode()


def _unpack(body: bytes) -> Array:
    import msgpack

    fields = msgpack.unpackb(base64.b64decode(json.loads(body)["inputs"]["buffer"]))
    return np.frombuffer(fields[b"data"], np.float32).reshape(fields[b"shape"])


async def _http_application(scope: Any, receive: Any, send: Any) -> None:
    """The identity model behind ASGI."""
    if scope["type"] != "http":
        return
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message["body"])
        more = message["more_body"]
    body = _pack(_unpack(b"".join(pieces)))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve_http() -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    listener = socket.create_server((HOST, 0))
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.errorlog = None
    config.keep_alive_timeout = 3_600  # it is idle while others are measured
    config.keep_alive_max_requests = 1 << 30
    ended = asyncio.Event()
    served = asyncio.create_task(serve(_http_application, config, shutdown_trigger=ended.wait))
    tell(address={"port": listener.getsockname()[1]})
    await report_on_asyncio()
    ended.set()
    await served


@asynccontextmanager
async def drive_http(address: dict[str, Any]) -> AsyncIterator[Ask]:
    connection = http.client.HTTPConnection(HOST, address["port"])

    async def ask(array: Array) -> Array:
        connection.request("POST", "/", _pack(array), {"Content-Type": "application/json"})
        return _unpack(connection.getresponse().read())

    yield ask
    connection.close()


CONTENDERS = {
    "agora": Contender(serve=serve_agora, drive=drive_agora),
    "grpc_aio_tls": Contender(serve=serve_grpc, drive=drive_grpc, runs_on="asyncio"),
    "hivemind": Contender(serve=serve_hivemind, drive=drive_hivemind, runs_on="asyncio"),
    "http_bittensor": Contender(serve=serve_http, drive=drive_http, runs_on="asyncio"),
}
