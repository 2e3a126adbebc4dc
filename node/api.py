"""The node's local HTTP interface: what it knows as JSON, metrics for Prometheus, and one way in.

Rule: it listens on loopback only, reads are open to the machine, and a transaction is taken only
with the token that lies in the data directory, so that no web page can submit one. Every answer
is a snapshot taken on the trio thread; nothing here waits for a peer.

    GET /status /peers /metagraph /weights /metrics      POST /submit (canonical transaction, hex)

Several transactions in one request, separated by white space, are answered by one result each in
order, and with 200 whatever the results are: {"results": [{"transaction"} or {"error"}, ...]}.
"""

import hmac
import json
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio import serve
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from node.errors import ListenError

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # the stubs that mypy finds for trio lack the name

HOST: Final = "127.0.0.1"
BODY_BYTES_MAX: Final = 64 * 1024  # the largest transaction in hex sixteen times, or 150 transfers
CONNECTION_BACKLOG: Final = 32
GRACE_S: Final = 0.5  # for answers under way when the node ends

Json = dict[str, Any] | list[Any]


class Views(Protocol):
    """What the interface shows; each call is quick and synchronous but `submit`."""

    def status(self) -> Json: ...

    def peers(self) -> Json: ...

    def metagraph(self) -> Json: ...

    def weights(self) -> Json: ...

    def gauges(self) -> dict[str, float]: ...

    def counters(self) -> dict[str, int]: ...

    async def submit_encoded(self, data: bytes) -> Json:
        """Check, keep and gossip a transaction; raises ValueError with the reason it is refused."""


async def serve_api(
    views: Views,
    *,
    port: int,
    record: Path,
    task_status: "TaskStatus[str]" = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; `record` gets the address and the token, and goes with us.

    Tells `task_status` the address. Raises ListenError when the port is taken. Cancelling closes
    the port, after the answers under way or GRACE_S.
    """
    token = secrets.token_urlsafe(24)
    listener = _listen(port)
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    config = HypercornConfig()
    config.bind = [f"fd://{listener.detach()}"]  # hypercorn closes it
    config.accesslog = None
    config.errorlog = logging.getLogger("agora.api")
    config.graceful_timeout = GRACE_S
    stop = trio.Event()
    # Cancelling hypercorn from outside makes it report a failed shutdown; asking it does not.
    shielded = trio.CancelScope(shield=True)

    async def run(task_status: "TaskStatus[list[str]]") -> None:
        with shielded:
            app: Any = application(views, token)
            await serve(app, config, shutdown_trigger=stop.wait, task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        _write_record(record, {"address": address, "token": token, "pid": os.getpid()})
        task_status.started(address)
        try:
            await trio.sleep_forever()
        finally:
            _remove_record(record)
            stop.set()
            shielded.deadline = trio.current_time() + 2 * GRACE_S


def application(views: Views, token: str) -> Starlette:
    """The ASGI application alone, for tests and other servers."""

    def show(view: Callable[[], Json]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(_request: Request) -> Response:
            return JSONResponse(view())

        return endpoint

    async def submit(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given, f"Bearer {token}"):
            return JSONResponse({"error": "the token of api.json is needed"}, status_code=401)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > BODY_BYTES_MAX:
                return JSONResponse({"error": "too large"}, status_code=413)
        encoded = body.split()
        if len(encoded) > 1:
            return JSONResponse({"results": [await submit_one(each) for each in encoded]})
        result = await submit_one(body)
        return JSONResponse(result, status_code=400 if "error" in result else 200)

    async def submit_one(encoded: bytes) -> dict[str, Any]:
        try:
            result = await views.submit_encoded(bytes.fromhex(encoded.decode("ascii")))
        except ValueError as error:
            return {"error": str(error)}
        return dict(result) if isinstance(result, dict) else {}

    async def metrics(_request: Request) -> Response:
        registry = CollectorRegistry()
        registry.register(_Figures(views))
        return PlainTextResponse(generate_latest(registry))

    reads = (views.status, views.peers, views.metagraph, views.weights)
    return Starlette(
        routes=[
            *(Route(f"/{view.__name__}", show(view)) for view in reads),
            Route("/metrics", metrics),
            Route("/submit", submit, methods=["POST"]),
        ]
    )


class _Figures(Collector):
    """The node's own figures in Prometheus' form."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def collect(self) -> Any:
        for name, value in sorted(self._views.gauges().items()):
            yield GaugeMetricFamily(f"agora_{name}", name.replace("_", " "), value=value)
        for name, count in sorted(self._views.counters().items()):
            yield CounterMetricFamily(f"agora_{name}", name.replace("_", " "), value=count)


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(CONNECTION_BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(f"the local interface's port {port}: {error.strerror}") from None
    return listener


def _write_record(record: Path, content: dict[str, Any]) -> None:
    part = record.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(content, file)
    part.replace(record)


def _remove_record(record: Path) -> None:
    record.unlink(missing_ok=True)
