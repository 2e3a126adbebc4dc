"""How many requests a second the queue orders: `python -m benchmarks.queue`.

The rule: 10,000 requests wait all the time; one operation is a push and a pop together, with random
costs and weights up to 2^60. `ops_per_s` is the median over the rounds for 100 senders with weight;
`by_senders` holds other populations, the last of them one sender per request. Seconds are those of
this thread's CPU, as other processes are none of the queue's business.
"""

from __future__ import annotations

import random
import time
from typing import Any

import click

from benchmarks.measure import environment, median, print_json, print_table
from tensorwire import StakeQueue

WAITING = 10_000
OPERATIONS = 20_000
SENDERS = 100
POPULATIONS = (10, SENDERS, 1_000, WAITING)
COST_MAX = 1_000
WEIGHT_MAX = 1 << 60
GOAL_PER_S = 100_000


def operations_per_s(senders: int, seed: int) -> float:
    """Push and pop `OPERATIONS` times with `WAITING` requests of `senders` in the queue."""
    rng = random.Random(seed)
    count = WAITING + OPERATIONS
    names = [f"sender {index}" for index in range(senders)]
    weights = [rng.randrange(1, WEIGHT_MAX) for _ in names]
    arrivals = [(rng.randrange(senders), rng.randrange(1, COST_MAX)) for _ in range(count)]
    queue: StakeQueue[int] = StakeQueue(
        items_max=2 * WAITING, bytes_max=1 << 50, per_sender_max=2 * WAITING
    )
    for number, (who, cost) in enumerate(arrivals[:WAITING]):
        queue.push(names[who], number, weight=weights[who], cost=cost, payload_bytes=cost)
    began_s = time.thread_time()
    for number, (who, cost) in enumerate(arrivals[WAITING:]):
        queue.push(names[who], number, weight=weights[who], cost=cost, payload_bytes=cost)
        queue.pop(number)
    return OPERATIONS / (time.thread_time() - began_s)


def measure(rounds: int) -> dict[str, Any]:
    """The whole run, in the shape that `--json` prints."""
    result = environment()
    samples: dict[int, list[float]] = {senders: [] for senders in POPULATIONS}
    for seed in range(rounds):
        for senders in POPULATIONS:
            samples[senders].append(operations_per_s(senders, seed))
    result["ops_per_s"] = round(median(samples[SENDERS]))
    result["waiting"] = WAITING
    result["rounds"] = rounds
    result["by_senders"] = {
        str(senders): round(median(samples[senders])) for senders in POPULATIONS
    }
    return result


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Rounds to take medians over.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(rounds: int, as_json: bool) -> None:
    """Measure push and pop of the stake-weighted queue with 10,000 requests waiting."""
    result = measure(rounds)
    if as_json:
        print_json(result)
        return
    print_table(
        f"Push and pop with {WAITING:,} waiting, medians of {rounds} rounds",
        ("senders", "operations per s"),
        ((senders, f"{rate:,}") for senders, rate in result["by_senders"].items()),
        caption=f"load average {result['load_average']}, {result['cpus']} CPUs; "
        f"wanted with {SENDERS} senders: {GOAL_PER_S:,}",
    )


if __name__ == "__main__":
    main()
