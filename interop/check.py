"""Checks the vectors with code of its own: `python -m interop.check`.

Nothing here or in `interop.oracle` is shared with the packages, so an error would have to be made
twice. `fixed` and `mechanism` are recomputed whole; of `codec` the rows, transactions, hashes,
trees, signatures, work and rounding; of `transition` the Merkle root over the dumped entries, and
every balance of blocks of SetWeights and Transfer, boundary included.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import nacl.exceptions
import nacl.signing
from blake3 import blake3

from interop.oracle import naive_sigmoid, naive_step

VECTORS: Final = Path(__file__).parent / "vectors"
DOMAINS: Final = {"VOTE": b"agora:vote".ljust(16, b"\x00")}
COUNTERSIGNED: Final = (2, 3, 4)
"""Kind bytes of RotatePeerKey, Subscribe, SubscribeFor."""


def check_fixed(case: dict[str, Any], output: dict[str, Any]) -> bool:
    """Every T by decimal arithmetic."""
    return bool([naive_sigmoid(t) for t in case["sigmoid"]] == output["sigmoid"])


def check_mechanism(case: dict[str, Any], output: dict[str, Any]) -> bool:
    """The whole step by loops over Python integers."""
    return bool(naive_step(case) == output)


def check_codec(case: dict[str, Any], output: dict[str, Any]) -> bool:
    """The questions that can be answered in a page."""
    if "hash" in case:
        asked = case["hash"]
        digest = tagged(asked["tag"].encode(), bytes.fromhex(asked["payload"]))
        return bool(digest.hex() == output["hash"])
    if "merkle" in case:
        return bool(merkle_root(case["merkle"]) == output["root"])
    if "verify" in case:
        return bool(signature_holds(case["verify"]) == output["valid"])
    if "work" in case:
        work = case["work"]
        names = ("chain_id", "owner", "peer_key", "ancestor")
        payload = bytes.fromhex("".join(work[name] for name in names))
        payload += work["number"].to_bytes(8, "big")
        return bool(tagged(b"work", payload).hex() == output["digest"])
    if "round" in case:
        return bool(largest_remainders(case["round"]) == output["row"])
    data = bytes.fromhex(case["hex"])
    match case["decode"]:
        case "row":
            row = read_row(data)
            return (row is not None) == output["accepted"] and (
                row is None or row == output["value"]
            )
        case "transaction":
            return check_transaction(data, output)
        case "genesis":
            return not output["accepted"] or tagged(b"genesis", data).hex() == output["chain_id"]
        case "header" | "body" as name:
            found = output.get("hash" if name == "header" else "root")
            return not output["accepted"] or tagged(name.encode(), data).hex() == found
        case "voter_set":
            return not output["accepted"] or tagged(b"vset", data).hex() == output["hash"]
        case _:
            return isinstance(output["accepted"], bool)


def check_transaction(data: bytes, output: dict[str, Any]) -> bool:
    """Lengths, the payload's border, the hash, and the fields that all kinds share."""
    if not output["accepted"]:
        return not (data and data[0] == 8 and read_row(data[89:-64]) is not None)
    signatures = 128 if data[0] in COUNTERSIGNED else 64
    value = output["value"]
    return bool(
        output["payload"] == data[:-signatures].hex()
        and output["hash"] == tagged(b"transaction", data).hex()
        and value["chain_id"] == data[1:33].hex()
        and value["account"] == data[33:65].hex()
        and value["nonce"] == int.from_bytes(data[65:73], "big")
        and value["expiry"] == int.from_bytes(data[73:81], "big")
        and value["fee"] == int.from_bytes(data[81:89], "big")
        and value["signature"] == data[len(data) - signatures :][:64].hex()
    )


def check_transition(case: dict[str, Any], output: dict[str, Any]) -> bool:
    """A ledger of balances, in parallel, where it knows every kind that occurs."""
    if any(
        isinstance(each, str) or each["kind"] not in ("SetWeights", "Transfer")
        for block in case["blocks"]
        for each in block["transactions"]
    ):
        supply = all(
            sum(answer["stake"]) + answer["pool"] == answer["issued"] for answer in output["blocks"]
        )
        return bool(supply and merkle_root(output["entries"]) == output["blocks"][-1]["state_root"])
    ledger = Balances(case["genesis"])
    if not ledger.agrees(output["genesis"]):
        return False
    for block, answer in zip(case["blocks"], output["blocks"], strict=True):
        refused = {number for number, _ in answer["refused"]}
        ledger.execute([each for n, each in enumerate(block["transactions"]) if n not in refused])
        if not ledger.agrees(answer):
            return False
    root: str = output["blocks"][-1]["state_root"]
    return merkle_root(output["entries"]) == root


class Balances:
    """Stake, claims, scaling and pool of accounts that only set weights and pay."""

    def __init__(self, genesis: dict[str, Any]) -> None:
        self.params = genesis["parameters"]
        accounts = genesis["accounts"]
        self.uid = {account["owner"]: uid for uid, account in enumerate(accounts)}
        self.stake = [account["stake"] for account in accounts]
        self.scaling = [account["scaling"] for account in accounts]
        self.rows = [account["row"] for account in accounts]
        self.claim = [0] * len(accounts)
        self.pool = genesis["pool"]
        self.issued = sum(self.stake) + self.pool
        self.height = 0
        self.snapshot = self.case()
        first = naive_step(self.snapshot)
        self.open = first["open"]
        self.trust = first.get("trust", [2**29] * len(accounts))

    def case(self) -> dict[str, Any]:
        """What the mechanism is computed from."""
        return {
            "params": self.params,
            "stake": list(self.stake),
            "scaling": list(self.scaling),
            "rows": list(self.rows),
            "pool": 0,
        }

    def execute(self, transactions: list[dict[str, Any]]) -> None:
        """One block. Claims grow block by block, not lazily."""
        self.height += 1
        if self.open:
            for i, stake in enumerate(self.stake):
                self.claim[i] += self.params["inflation"] * (stake * self.scaling[i] // 2**30)
        for each in transactions:
            sender = self.uid[each["account"]]
            if each["kind"] == "Transfer":
                self.stake[sender] -= each["content"]["amount"] + each["fee"]
                self.stake[self.uid[each["content"]["recipient"]]] += each["content"]["amount"]
                self.pool += each["fee"]
            else:
                self.settle(sender, each["fee"])
                self.rows[sender] = each["content"]["row"]
        if self.height % self.params["blocks_per_epoch"] == 0:
            self.end_epoch()

    def settle(self, i: int, fee: int) -> None:
        """Emit the claim of i under its old row."""
        emitted = min(self.claim[i] // 2**32, self.params["supply_cap"] - self.issued)
        self.claim[i] %= 2**32
        own = emitted * dict(self.rows[i]).get(i, 0) // 2**16
        fee_from_own = min(own, fee)
        before = sum(self.stake)
        for j, weight in self.rows[i]:
            if j != i:
                self.stake[j] += emitted * weight * self.trust[j] // 2**46
        if not self.params["self_edge_to_pool"]:
            self.stake[i] += (own - fee_from_own) * self.trust[i] // 2**30
        self.stake[i] -= fee - fee_from_own
        self.issued += emitted
        self.pool += emitted - (sum(self.stake) - before)

    def end_epoch(self) -> None:
        """The outcome of the previous snapshot, then a new one."""
        outcome = naive_step({**self.snapshot, "pool": self.pool})
        self.stake = [s + p for s, p in zip(self.stake, outcome["payout"], strict=True)]
        self.pool = outcome["pool_next"]
        self.scaling = outcome["scaling_next"]
        self.open = outcome["open"]
        self.trust = outcome.get("trust", [2**29] * len(self.stake))
        self.snapshot = self.case()

    def agrees(self, answer: dict[str, Any]) -> bool:
        """Whether the implementation says the same."""
        return (
            answer["stake"] == self.stake
            and answer["scaling"] == self.scaling
            and answer["trust"] == self.trust
            and (answer["pool"], answer["issued"]) == (self.pool, self.issued)
            and answer["open"] == self.open
            and answer["height"] == self.height
            and sum(self.stake) + self.pool == self.issued
        )


def tagged(tag: bytes, payload: bytes) -> bytes:
    """blake3 of tag, zero, payload."""
    return blake3(tag + b"\x00" + payload).digest()


def merkle_root(entries: list[list[str]]) -> str:
    """By recursion: RFC 6962 shape, count bound into the root."""

    def top(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return blake3(b"\x01" + top(leaves[:split]) + top(leaves[split:])).digest()

    leaves = [
        blake3(b"\x00" + bytes.fromhex(key) + bytes.fromhex(value)).digest()
        for key, value in sorted(entries)
    ]
    summit = top(leaves) if leaves else tagged(b"merkle-empty", b"")
    return tagged(b"merkle-root", len(leaves).to_bytes(8, "big") + summit).hex()


def signature_holds(asked: dict[str, str]) -> bool:
    """libsodium over domain, chain id and payload."""
    message = DOMAINS[asked["domain"]] + bytes.fromhex(asked["chain_id"] + asked["payload"])
    try:
        key = nacl.signing.VerifyKey(bytes.fromhex(asked["public_key"]))
        key.verify(message, bytes.fromhex(asked["signature"]))
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True


def largest_remainders(scores: list[list[int]]) -> list[list[int]]:
    """Hamilton's method over the 64 largest scores."""
    kept = sorted((-score, uid) for uid, score in scores if score > 0)[:64]
    total = -sum(score for score, _ in kept)
    quota = {uid: divmod(-score * 65_536, total) for score, uid in kept}
    missing = 65_536 - sum(whole for whole, _ in quota.values())
    lucky = sorted(quota, key=lambda uid: (-quota[uid][1], uid))[:missing]
    weights = {uid: whole + (uid in lucky) for uid, (whole, _) in quota.items()}
    return [[uid, weight] for uid, weight in sorted(weights.items()) if weight]


def read_row(data: bytes) -> list[list[int]] | None:
    """The entries, None when this is no row."""
    if not data or not 1 <= data[0] <= 64 or len(data) != 1 + 8 * data[0]:
        return None
    words = [int.from_bytes(data[at : at + 4], "big") for at in range(1, len(data), 4)]
    uids, weights = words[::2], words[1::2]
    ascending = all(a < b for a, b in pairwise(uids))
    if not ascending or 0 in weights or sum(weights) != 65_536:
        return None
    return [list(pair) for pair in zip(uids, weights, strict=True)]


CHECKS: Final[dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]]] = {
    "fixed": check_fixed,
    "codec": check_codec,
    "mechanism": check_mechanism,
    "transition": check_transition,
}


def main() -> int:
    """Check every file; 1 with the names of the cases that disagree."""
    wrong = []
    for kind, check in CHECKS.items():
        document = json.loads((VECTORS / f"{kind}.json").read_text())
        cases = document["cases"]
        wrong += [
            f"{kind}: {case['name']}" for case in cases if not check(case["input"], case["output"])
        ]
        digest = hashlib.sha256((VECTORS / f"{kind}.json").read_bytes()).hexdigest()[:16]
        print(f"{kind}: {len(cases)} cases, sha256 {digest}")
    for name in wrong:
        print(f"disagrees: {name}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
