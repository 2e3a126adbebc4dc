"""An oracle: the mechanism step written from its specification in plain integers and loops.

It shares nothing with the packages: no numpy, no sparse matrix, no early end, no tables; the
sigmoid is e^-|t| by decimal arithmetic along the specified chain of roundings.
"""

from __future__ import annotations

from decimal import Decimal, getcontext
from typing import Any


def naive_step(case: dict[str, Any]) -> dict[str, Any]:
    """The answer to a `mechanism` case of interop/README.md."""
    p, stake, a = case["params"], case["stake"], case["scaling"]
    n = len(stake)
    w = [[0] * n for _ in range(n)]
    for i, row in enumerate(case["rows"]):
        for k, weight in row:
            w[i][k] = weight
    scaled = [stake[i] * a[i] // 2**30 for i in range(n)]
    z = sum(scaled)
    pool = case["pool"]
    if z == 0:
        return {
            "open": False,
            "payout": [0] * n,
            "scaling_next": [2**30] * n,
            "pool_next": pool,
        }
    share = [x * 2**36 // z for x in scaled]
    rank = [sum(share[i] * w[i][k] for i in range(n)) for k in range(n)]
    received = [rank[k] - share[k] * w[k][k] for k in range(n)]
    threshold = [p["cutoff"] + p["rank_cutoff"] * (received[k] // 2**16) // 2**16 for k in range(n)]
    c = [[-1] * n for _ in range(n)]
    for i in range(n):
        x = [2**36 if k == i else 0 for k in range(n)]
        visits = list(x)
        for _ in range(p["depth"]):
            x = [sum(x[j] * w[j][k] for j in range(n) if j != k) // 2**16 for k in range(n)]
            visits = [visits[k] + x[k] for k in range(n)]
        for k in range(n):
            if k == i or visits[k] > threshold[k]:
                c[i][k] = 1
    total = sum(share)
    tau = [2 * sum(share[i] for i in range(n) if c[i][k] == 1) - total for k in range(n)]
    trust = []
    for x in tau:
        t = abs(x) * p["temperature"] // 2**12
        trust.append(naive_sigmoid(t if x >= 0 else -t))
    base = received if p["self_edge_to_pool"] else rank
    incentive = [base[k] * trust[k] // 2**30 for k in range(n)]
    u = sum(rank[k] * (trust[k] - 2**29) // 2**30 for k in range(n))
    v = [trust[k] * (2**30 - trust[k]) // 2**30 for k in range(n)]
    g = [rank[k] * v[k] // 2**30 for k in range(n)]
    gradient = []
    for i in range(n):
        first = sum(w[i][k] * (trust[k] - 2**29) for k in range(n)) // 2**16
        second = 2 * sum(g[k] for k in range(n) if c[i][k] == 1) - sum(g)
        second -= sum(tau[k] * g[k] // 2**36 for k in range(n))
        gradient.append(first - u // 2**22 + p["temperature"] * (second // 2**22))
    is_open = -u < 0
    payout = [0] * n
    if is_open:
        if sum(incentive):
            payout = [pool * x // sum(incentive) for x in incentive]
        following = [min(x + p["recovery"], 2**30) for x in a]
    else:
        following = [
            min(max(a[i] + gradient[i] * p["learning_rate"] // 2**16, 0), 2**30) for i in range(n)
        ]
    return {
        "share": share,
        "rank": rank,
        "tau": tau,
        "trust": trust,
        "incentive": incentive,
        "loss": -u,
        "open": is_open,
        "gradient": gradient,
        "payout": payout,
        "scaling_next": following,
        "pool_next": pool - sum(payout),
    }


def naive_sigmoid(t: int) -> int:
    """The specified roundings with table entries from decimal arithmetic."""
    getcontext().prec = 60
    x = min(abs(t), 2**28 - 1)
    h, m, low = x >> 18, (x >> 9) & 511, x & 511
    power = (-Decimal(h) / 64).exp()
    shift = 0
    while power * 2 ** (shift + 1) <= 1:
        shift += 1
    mantissa = int((power * 2 ** (30 + shift)).to_integral_value())
    fine = int((2**30 * (-Decimal(m) / 2**15).exp()).to_integral_value())
    finest = int((2**30 * (-Decimal(low) / 2**24).exp()).to_integral_value())
    e = (mantissa * fine + 2**29) >> 30
    e = (e * finest + 2**29) >> 30
    divisor: int = (1 << (30 + shift)) + e
    n = ((e << 30) + (divisor >> 1)) // divisor
    return n if t < 0 else (1 << 30) - n
