"""This implementation's answer to a case of the wire contract: `python -m interop.compute KIND`.

    python -m interop.compute {fixed,codec,mechanism,transition} < case.json

reads one JSON case and prints one JSON object. `interop/README.md` says what a case looks like,
so that another implementation, or another machine, can be compared on cases that nobody prepared.
A case that is not one ends with a line on standard error and status 2.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from consensus.account import read_announcement
from consensus.block import BlockKind, Body, Header, Proposal
from consensus.codec import Reader
from consensus.crypto import Domain, Ed25519Signer, Ed25519Verifier, H
from consensus.entries import entries_of
from consensus.errors import ConsensusError, DecodeError
from consensus.fixed import sigmoid
from consensus.genesis import Genesis, decode_genesis, genesis_state
from consensus.genesis_text import genesis_from_json
from consensus.incentive import Snapshot, mechanism_step, payouts
from consensus.merkle import MerkleTree
from consensus.params import PAPER, read_parameters
from consensus.state import State
from consensus.transaction import KINDS, Content, decode_transaction
from consensus.transition import begin, choose
from consensus.types import (
    ZERO_DIGEST,
    AccountId,
    Amount,
    ChainId,
    Digest,
    Height,
    Nonce,
    PeerKey,
    Signature,
    Uid,
    View,
)
from consensus.vote import Certificate, Vote, VoterSet
from consensus.wallet import Draft
from consensus.weights import Row, read_row, rounded_row
from consensus.work import work_digest

Case = Mapping[str, Any]

KIND_NAMES: Final = {kind.__name__: kind for kind in KINDS}


def fixed(case: Case) -> dict[str, Any]:
    """T of every t."""
    return {"sigmoid": [sigmoid(int(t)) for t in case["sigmoid"]]}


def codec(case: Case) -> dict[str, Any]:
    """Decode, hash, root, verify, round: whichever the case asks for."""
    if "decode" in case:
        return _decode(case["decode"], bytes.fromhex(case["hex"]))
    if "hash" in case:
        asked = case["hash"]
        return {"hash": H(asked["tag"].encode(), bytes.fromhex(asked["payload"])).hex()}
    if "merkle" in case:
        entries = {bytes.fromhex(key): bytes.fromhex(value) for key, value in case["merkle"]}
        return {"root": MerkleTree(entries).root.hex()}
    if "verify" in case:
        asked = case["verify"]
        holds = Ed25519Verifier().verify(
            bytes.fromhex(asked["public_key"]),
            Domain[asked["domain"]],
            ChainId(bytes.fromhex(asked["chain_id"])),
            bytes.fromhex(asked["payload"]),
            Signature(bytes.fromhex(asked["signature"])),
        )
        return {"valid": holds}
    if "work" in case:
        parts = case["work"]
        chain_id, owner, peer_key, ancestor = (
            bytes.fromhex(parts[name]) for name in ("chain_id", "owner", "peer_key", "ancestor")
        )
        digest = work_digest(
            ChainId(chain_id),
            AccountId(owner),
            PeerKey(peer_key),
            Digest(ancestor),
            parts["number"],
        )
        return {"digest": digest.hex()}
    if "round" in case:
        row = rounded_row({Uid(uid): score for uid, score in case["round"]})
        return {"row": [list(entry) for entry in row.entries]}
    raise KeyError("decode, hash, merkle, verify, work or round")


def mechanism(case: Case) -> dict[str, Any]:
    """One step of the mechanism; row i belongs to uid i."""
    names = {field.name for field in dataclasses.fields(PAPER)}
    unknown = sorted(set(case["params"]) - names)
    if unknown:
        raise KeyError(f"unknown parameters {unknown}")
    parameters = dataclasses.replace(PAPER, **case["params"])
    snapshot = Snapshot(
        uids=tuple(Uid(uid) for uid in range(len(case["stake"]))),
        stake=tuple(case["stake"]),
        scaling=tuple(case["scaling"]),
        rows=tuple(_row(row) for row in case["rows"]),
    )
    if not len(snapshot.uids) == len(snapshot.scaling) == len(snapshot.rows):
        raise ValueError("stake, scaling and rows differ in length")
    pool = int(case["pool"])
    outcome = mechanism_step(snapshot, parameters)
    paid = payouts(outcome, pool)
    moved: dict[str, Any] = {
        "payout": list(paid),
        "scaling_next": list(outcome.scaling_next),
        "pool_next": pool - sum(paid),
    }
    if not outcome.scaled_total:
        return {"open": outcome.open, **moved}
    return {
        "share": list(outcome.share),
        "rank": list(outcome.rank),
        "tau": list(outcome.tau),
        "trust": list(outcome.trust),
        "incentive": list(outcome.incentive),
        "loss": outcome.loss,
        "open": outcome.open,
        "gradient": list(outcome.gradient),
        **moved,
    }


def transition(case: Case) -> dict[str, Any]:
    """Execute blocks of transactions on a genesis; refused transactions are left out and named."""
    genesis = genesis_from_json(json.dumps(case["genesis"]))
    state = genesis_state(genesis)
    answers = []
    for block in case["blocks"]:
        header = _header(state, block)
        execution = begin(state, header, genesis.parameters)
        offered = [_transaction(genesis, each) for each in block.get("transactions", [])]
        refused = []
        taken: list[bytes] = []
        for number, encoded in enumerate(offered):
            one, faults = choose(execution, [encoded], len(encoded) + 4)
            taken += one
            refused += [[number, str(error.reason)] for _, error in faults]
        executed = execution.finish(Body(transactions=tuple(taken)))
        state = executed.state
        answers.append(
            {
                "refused": refused,
                "receipts_root": executed.receipts_root.hex(),
                "next_vset_hash": executed.next_vset_hash.hex(),
                **_summary(state),
            }
        )
    result: dict[str, Any] = {
        "chain_id": genesis.chain_id.hex(),
        "genesis": _summary(genesis_state(genesis)),
        "blocks": answers,
    }
    if case.get("entries"):
        result["entries"] = [[key.hex(), value.hex()] for key, value in entries_of(state)]
    return result


KINDS_OF_CASE: Final[dict[str, Callable[[Case], dict[str, Any]]]] = {
    "fixed": fixed,
    "codec": codec,
    "mechanism": mechanism,
    "transition": transition,
}


def main(arguments: list[str]) -> int:
    """Read a case from standard input and print the answer; 0, or 2 when it is no case."""
    if len(arguments) != 1 or arguments[0] not in KINDS_OF_CASE:
        print(f"usage: python -m interop.compute {{{','.join(KINDS_OF_CASE)}}}", file=sys.stderr)
        return 2
    try:
        answer = KINDS_OF_CASE[arguments[0]](json.load(sys.stdin))
    except (ConsensusError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"not a {arguments[0]} case: {error}", file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0


def plain(value: object) -> Any:
    """Values as JSON: dataclasses as objects of their given fields, bytes as hex."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, Row):
            return [list(entry) for entry in value.entries]
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
    match value:
        case bytes():
            return value.hex()
        case enum.Enum():
            return int(value.value)
        case tuple() | list():
            return [plain(each) for each in value]
        case _:
            return value


def _decode(name: str, data: bytes) -> dict[str, Any]:
    try:
        value = _DECODERS[name](data)
    except DecodeError:
        return {"accepted": False}
    answer: dict[str, Any] = {"accepted": True, "value": plain(value)}
    if name == "transaction":
        answer["value"] |= {"kind": type(value.content).__name__}
        answer["payload"] = value.payload.hex()
    for digest in ("hash", "root", "chain_id"):
        found = getattr(value, digest, None)
        if isinstance(found, bytes) and digest not in answer["value"]:
            answer[digest] = found.hex()
    return answer


def _whole(read: Callable[[Reader], Any]) -> Callable[[bytes], Any]:
    def decode(data: bytes) -> Any:
        reader = Reader(data)
        value = read(reader)
        reader.end()
        return value

    return decode


_DECODERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "row": _whole(read_row),
    "announcement": _whole(read_announcement),
    "parameters": _whole(read_parameters),
    "voter_set": _whole(VoterSet.read),
    "vote": Vote.decode,
    "certificate": Certificate.decode,
    "header": Header.decode,
    "proposal": Proposal.decode,
    "body": Body.decode,
    "transaction": decode_transaction,
    "genesis": decode_genesis,
}


def _row(entries: list[list[int]]) -> Row:
    return Row(tuple((Uid(uid), weight) for uid, weight in entries))


def _header(state: State, block: Case) -> Header:
    height = Height(state.height + 1)
    return Header(
        chain_id=state.chain_id,
        epoch=state.epoch,
        view=View(height),
        height=height,
        kind=BlockKind.NORMAL,
        parent_hash=Digest(bytes.fromhex(block.get("parent_hash", "00" * 32))),
        parent_view=View(height - 1),
        time_ms=block["time_ms"],
        proposer=state.voters.voters[0].account,
        body_root=ZERO_DIGEST,
        state_root=ZERO_DIGEST,
        vset_hash=state.voters.hash,
        next_vset_hash=ZERO_DIGEST,
        receipts_root=ZERO_DIGEST,
    )


def _transaction(genesis: Genesis, given: str | Case) -> bytes:
    """An encoded transaction, or one described by its fields and the seeds that sign it."""
    if isinstance(given, str):
        return bytes.fromhex(given)
    draft = Draft(
        chain_id=genesis.chain_id,
        account=AccountId(bytes.fromhex(given["account"])),
        nonce=Nonce(given["nonce"]),
        expiry=Height(given["expiry"]),
        fee=Amount(given["fee"]),
        content=_content(given["kind"], given["content"]),
    )
    signer = Ed25519Signer(bytes.fromhex(given["seed"]))
    second = given.get("peer_seed")
    other = None if second is None else Ed25519Signer(bytes.fromhex(second))
    return draft.sign(signer, other).encoded


def _content(kind: str, fields: Case) -> Content:
    values: dict[str, Any] = {}
    for name, value in fields.items():
        if name == "row":
            values[name] = _row(value)
        elif name == "announcement":
            values[name] = _whole(read_announcement)(bytes.fromhex(value))
        else:
            values[name] = bytes.fromhex(value) if isinstance(value, str) else value
    return KIND_NAMES[kind](**values)


def _summary(state: State) -> dict[str, Any]:
    return {
        "state_root": state.root.hex(),
        "height": state.height,
        "epoch": state.epoch,
        "vset_hash": state.voters.hash.hex(),
        "pool": state.pool,
        "issued": state.issued,
        "open": state.is_open,
        "uids": sorted(state.accounts),
        "stake": [state.stake[uid] for uid in sorted(state.accounts)],
        "scaling": [state.scaling[uid] for uid in sorted(state.accounts)],
        "trust": [state.trust_of(uid) for uid in sorted(state.accounts)],
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
