"""Who is served how much under contention, against stake: `python -m experiments.queue_share`.

One slow server and callers with the stakes given, beside a flood of callers without any, over real
sockets and through the real handler. Every caller keeps several requests of equal cost in flight
until the one with the least stake has had `--services` answers. Callers count the shares, at
the moment when each answer arrives; the server's signed receipts are counted beside them.

Expected (paper, "Running the network", with the formula of DECISIONS.md): the share of caller i
among those with stake is s_i·w_ij / Σ s·w; the flood together has the floor's share.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import trio
from numpy.typing import NDArray

import p2p
from node.dendrite import Dendrite
from node.errors import CallError
from node.exchange import Server, ServingOptions
from p2p.backend.switch import open_switch
from tensorwire import Modality, Part, WireTensor
from tensorwire.queue import FLOOR_SHARE_PPM

STAKES = (1, 2, 4, 8, 16, 32, 64, 128)
WEIGHT = 1_000  # w_ij of every caller with stake: what each gives the server
CONTEXT = b"queue-share"
DEADLINE_S = 600.0
DIM = 4
PATIENCE_S = 0.05  # between looks at whether everybody's requests wait
ONE_PPM = 1_000_000


@dataclass(slots=True, kw_only=True)
class Caller:
    """One caller: its stake, and the service numbers of its answers in the order they came."""

    stake: int
    identity: p2p.Identity
    services: list[int] = field(default_factory=list)


class SlowModel:
    """Takes `service_s` for every call, and none before the gate opens."""

    modalities = frozenset({Modality.TEXT})
    dim = DIM
    vocabulary = 256

    def __init__(self, service_s: float) -> None:
        self._service_s = service_s
        self.is_open = False

    def forward(self, parts: Sequence[Part]) -> NDArray[np.float32]:
        """Zeros `[bs, seq, 4]`."""
        while not self.is_open:
            time.sleep(PATIENCE_S)
        time.sleep(self._service_s)
        rows, steps = parts[0].tensor.shape
        return np.zeros((rows, steps, DIM), np.float32)


async def contend(
    stakes: Sequence[int], *, flood: int, in_flight: int, service_s: float, services: int
) -> dict[str, Any]:
    """Run the contention and return what `--json` prints."""
    callers = [Caller(stake=stake, identity=p2p.Identity.generate()) for stake in stakes]
    crowd = [Caller(stake=0, identity=p2p.Identity.generate()) for _ in range(flood)]
    weights = {caller.identity.peer_id: caller.stake * WEIGHT for caller in callers}
    model = SlowModel(service_s)
    waiting = in_flight * len(callers) + in_flight * flood
    options = ServingOptions(
        items_max=2 * waiting,
        per_sender_max=2 * in_flight,
        batch_rows_max=1,
        floor_bytes_divisor=1,
        remaining_ms_max=int(DEADLINE_S * 1_000),
    )
    least = min(callers, key=lambda caller: caller.stake)
    done = trio.Event()
    identity = p2p.Identity.generate()
    listen = ["/ip4/127.0.0.1/tcp/0"]
    # The crowd is to stay connected: by default a node parts with strangers above 96 peers.
    limits = p2p.Limits(peers_high=len(callers) + flood + 1, connections_max=2 * (1 + waiting))
    async with (
        p2p.open_network(identity, listen=listen, limits=limits) as network,
        trio.open_nursery() as nursery,
    ):
        server = Server(
            network,
            model,
            weight_of=lambda peer: weights.get(peer, 0),
            options=options,
            sign=identity.sign,
            context=CONTEXT,
        )
        await nursery.start(server.run)
        for caller in (*callers, *crowd):
            enough = services if caller is least else None
            nursery.start_soon(ask_and_ask, network.addresses[0], caller, in_flight, enough, done)
        while server.waiting < waiting - 1:  # noqa: ASYNC110 - one is with the model already
            await trio.sleep(PATIENCE_S)
        model.is_open = True
        await done.wait()
        nursery.cancel_scope.cancel()
    return summary(callers, crowd)


async def ask_and_ask(
    address: str, caller: Caller, in_flight: int, enough: int | None, done: trio.Event
) -> None:
    """Keep `in_flight` requests of one caller waiting; `done` is set after `enough` answers.

    Sockets and streams of its own, without gossip and DHT.
    """
    tokens = Part(Modality.TEXT, WireTensor.from_numpy(np.zeros((1, 1), np.int64)))
    async with open_switch(caller.identity, p2p.Limits()) as switch:
        server = await switch.connect(address)
        dendrite = Dendrite(cast(p2p.Network, switch), context=CONTEXT)

        async def keep_asking() -> None:
            while not done.is_set():
                try:
                    answer = await dendrite.forward(server, [tokens], deadline_s=DEADLINE_S)
                except CallError as error:
                    raise click.ClickException(f"stake {caller.stake}: {error}") from error
                if answer.receipt is None:
                    raise click.ClickException("an answer came without a valid receipt")
                if not done.is_set():
                    caller.services.append(answer.receipt.service_number)
                if len(caller.services) == enough:
                    done.set()

        async with trio.open_nursery() as nursery:
            for _ in range(in_flight):
                nursery.start_soon(keep_asking)


def summary(callers: Sequence[Caller], crowd: Sequence[Caller]) -> dict[str, Any]:
    """Shares among the callers with stake, by their clocks and by the receipts."""
    answered = sum(len(caller.services) for caller in callers)
    crowd_answered = sum(len(caller.services) for caller in crowd)
    total_stake = sum(caller.stake for caller in callers)
    senders, errors = [], []
    for caller in callers:
        expected, measured = caller.stake / total_stake, len(caller.services) / answered
        errors.append(abs(measured / expected - 1))
        senders.append(
            {
                "stake": caller.stake,
                "weight": WEIGHT,
                "expected_share": round(expected, 6),
                "measured_share": round(measured, 6),
                "services": len(caller.services),
            }
        )
    return {
        "senders": senders,
        "max_relative_error": round(max(errors), 4),
        "floor": {
            "callers": len(crowd),
            "expected_share": FLOOR_SHARE_PPM / ONE_PPM if crowd else 0.0,
            "measured_share": round(crowd_answered / (answered + crowd_answered), 4),
        },
        "receipts": compare_receipts([*callers, *crowd]),
    }


def compare_receipts(callers: Sequence[Caller]) -> dict[str, Any]:
    """Whether the receipts tell the same story as the callers' clocks.

    Up to any service number that all have reached, the receipts below it are those that came.
    """
    numbers = [number for caller in callers for number in caller.services]
    late = sum(
        later < earlier
        for caller in callers
        for earlier, later in zip(caller.services, caller.services[1:], strict=False)
    )
    repeated = sum(count - 1 for count in Counter(numbers).values())
    span = max(numbers) - min(numbers) + 1
    return {
        "counted": len(numbers),
        "repeated": repeated,
        "out_of_order": late,
        "not_seen": span - len(numbers) + repeated,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """Share against stake, both axes logarithmic; the line is what stake promises."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="tight")
    axes = figure.subplots()
    senders = sorted(result["senders"], key=lambda sender: sender["stake"])
    stakes = [sender["stake"] for sender in senders]
    axes.plot(stakes, [sender["expected_share"] for sender in senders], label="s·w / Σ s·w")
    axes.plot(stakes, [sender["measured_share"] for sender in senders], "o", label="served")
    axes.set(xscale="log", yscale="log", xlabel="stake", ylabel="share of service")
    axes.legend()
    figure.savefig(path)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--stakes", default=",".join(map(str, STAKES)), show_default=True)
@click.option("--flood", default=100, show_default=True, help="Callers without stake.")
@click.option("--in-flight", default=8, show_default=True, help="Requests of each caller.")
@click.option("--service-ms", default=2.0, show_default=True, help="What the model takes.")
@click.option("--services", default=24, show_default=True, help="Answers to the least stake.")
@click.option("--plot", "plot_path", type=click.Path(path_type=Path), help="Write a picture.")
def main(
    as_json: bool,
    stakes: str,
    flood: int,
    in_flight: int,
    service_ms: float,
    services: int,
    plot_path: Path | None,
) -> None:
    """Measure the share of service that stake buys, over a real network."""
    try:
        numbers = [int(stake) for stake in stakes.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{stakes!r} is not a list of integers") from error
    if min(numbers) < 1:
        raise click.BadParameter("a stake is positive")
    result = trio.run(run, numbers, flood, in_flight, service_ms / 1_000, services)
    if plot_path is not None:
        plot(result, plot_path)
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for sender in result["senders"]:
        expected, measured = sender["expected_share"], sender["measured_share"]
        click.echo(f"stake {sender['stake']:>6}  expected {expected:.4f}  served {measured:.4f}")
    click.echo(f"largest relative error {result['max_relative_error']:.3f}")


async def run(
    stakes: Sequence[int], flood: int, in_flight: int, service_s: float, services: int
) -> dict[str, Any]:
    """`contend` with positional arguments, for `trio.run`."""
    return await contend(
        stakes, flood=flood, in_flight=in_flight, service_s=service_s, services=services
    )


if __name__ == "__main__":
    main()
