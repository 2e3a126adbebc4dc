"""Writes the vectors: `python -m interop.generate` (or `--check`, to fail when they drift).

Each file of `interop/vectors/` holds `{"kind", "cases": [{"name", "input", "output"}]}`: the input
is what `interop.compute` reads, the output what this implementation answers. Inputs come from fixed
seeds, so the files change only when an answer, or the list of cases, changes.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
from pathlib import Path
from typing import Any, Final

from consensus.account import Announcement
from consensus.block import BlockKind, Body, Header
from consensus.crypto import Domain, Ed25519Signer
from consensus.genesis import Genesis, GenesisAccount, encode_genesis, genesis_state
from consensus.genesis_text import genesis_to_json
from consensus.params import LOCAL, PAPER, PRESETS, TESTNET, Parameters, encode_parameters
from consensus.transaction import (
    Announce,
    Content,
    RotatePeerKey,
    SetWeights,
    Transfer,
    commitment_of,
)
from consensus.types import (
    ZERO_DIGEST,
    AccountId,
    Amount,
    ChainId,
    Digest,
    Epoch,
    Height,
    Modality,
    Nonce,
    PeerKey,
    Uid,
    View,
)
from consensus.vote import Ballot, Vote, VoteKind, certificate_of
from consensus.wallet import Draft
from consensus.weights import Row, rounded_row, self_row
from interop.compute import KINDS_OF_CASE
from interop.refusals import COMMITTING, LEDGER, refusals, refusals_of_commitments

VECTORS: Final = Path(__file__).parent / "vectors"
WEIGHT_ONE: Final = 65_536
SCALING_ONE: Final = 2**30
ANNOUNCEMENT: Final = Announcement(
    modality=Modality.TEXT, dim=64, vocabulary=256, addresses=("/ip4/127.0.0.1/tcp/4001",)
)
Named = list[tuple[str, dict[str, Any]]]


def fixed_cases() -> Named:
    """The ends and seams of the sigmoid's tables, and random arguments of every size."""
    rng = random.Random(1)
    seams = [s + d for s in (0, 1 << 9, 1 << 18, 15 << 18, 1023 << 18) for d in (-1, 0, 1)]
    ends = [2**28 - 2, 2**28 - 1, 2**28, 2**40]
    chance = [rng.randrange(-(2**28), 2**28) >> rng.randrange(26) for _ in range(400)]
    both = [sign * t for t in seams + ends for sign in (1, -1)]
    return [("seams and ends", {"sigmoid": both}), ("chance", {"sigmoid": chance})]


def mechanism_cases() -> Named:
    """Shapes and extremes, then chance."""
    cases: Named = []
    for n in (1, 2, 5, 64):
        for name, rows in _shapes(n).items():
            for stake in (0, 1, (2**55 - 1) // n):
                cases.append((f"{name} of {n}, stake {stake}", _mechanism(rows, stake)))
    for seed in range(40):
        rng = random.Random(seed)
        cases.append((f"chance {seed}", _random_mechanism(rng, rng.choice([3, 8, 20, 40]))))
    return cases


def codec_cases() -> Named:
    """A valid encoding of each type, mutations of it, and the other questions."""
    rng = random.Random(2)
    signer = Ed25519Signer(b"1" * 32)
    account = _genesis(LOCAL, [10**12] * 4)
    chain_id = account.chain_id
    row = Row(((Uid(1), 65_535), (Uid(7), 1)))
    ballot = Ballot(kind=VoteKind.NULLIFY, epoch=Epoch(3), view=View(9), block_hash=ZERO_DIGEST)
    vset = genesis_state(account).voters
    signature = signer.sign(Domain.VOTE, chain_id, ballot.payload(vset.hash))
    vote = Vote(ballot=ballot, signer=PeerKey(signer.public_key), signature=signature)
    certificate = certificate_of(ballot, vset, {0: signature, 1: signature})
    body = Body(transactions=(_signed(chain_id, SetWeights(row=row)),))
    header = Header(
        chain_id=chain_id,
        epoch=Epoch(1),
        view=View(2),
        height=Height(6),
        kind=BlockKind.NORMAL,
        parent_hash=Digest(rng.randbytes(32)),
        parent_view=View(0),
        time_ms=1_700_000_006_000,
        proposer=account.accounts[0].owner,
        body_root=body.root,
        state_root=Digest(rng.randbytes(32)),
        vset_hash=vset.hash,
        next_vset_hash=ZERO_DIGEST,
        receipts_root=Digest(rng.randbytes(32)),
    )
    valid: dict[str, list[bytes]] = {
        "row": [row.encoded, self_row(Uid(2**32 - 1)).encoded],
        "announcement": [ANNOUNCEMENT.encode()],
        "parameters": [encode_parameters(each) for each in PRESETS.values()],
        "voter_set": [vset.encode()],
        "vote": [vote.encode()],
        "certificate": [certificate.encode()],
        "transaction": [_signed(chain_id, content) for content in _contents(row)],
        "genesis": [encode_genesis(account)],
        "body": [Body().encode(), body.encode()],
        "header": [header.encode()],
        "proposal": [
            header.encode() + signer.sign(Domain.PROPOSAL, chain_id, header.hash),
        ],
    }
    cases: Named = []
    for name, encodings in valid.items():
        for number, encoded in enumerate(encodings):
            cases.append((f"{name} {number}", {"decode": name, "hex": encoded.hex()}))
            for mutation in range(6):
                mutated = _mutated(encoded, rng)
                title = f"{name} {number} mutated {mutation}"
                cases.append((title, {"decode": name, "hex": mutated.hex()}))
    payload = b"payload"
    good = signer.sign(Domain.VOTE, chain_id, payload)
    for title, claimed in (("good", good), ("bad", good[::-1])):
        cases.append(
            (
                f"{title} signature",
                {
                    "verify": {
                        "public_key": signer.public_key.hex(),
                        "domain": "VOTE",
                        "chain_id": chain_id.hex(),
                        "payload": payload.hex(),
                        "signature": claimed.hex(),
                    }
                },
            )
        )
    cases.append(("tagged hash", {"hash": {"tag": "header", "payload": "00ff"}}))
    for count in (0, 1, 2, 3, 7, 8, 9):
        entries = [[f"01{number:08x}", rng.randbytes(number).hex()] for number in range(count)]
        cases.append((f"tree of {count}", {"merkle": entries}))
    work = {name: rng.randbytes(32).hex() for name in ("chain_id", "owner", "peer_key", "ancestor")}
    cases.append(("work", {"work": {**work, "number": 2**63 + 5}}))
    cases.append(("three equal scores", {"round": [[7, 1], [3, 1], [5, 1]]}))
    cases.append(("a hundred scores", {"round": [[uid, uid % 7] for uid in range(100)]}))
    return cases


def transition_cases() -> Named:
    """Short chains: settlement, payments, keys, refusals, boundaries; three presets."""
    cases: Named = []
    worlds = {
        "paper": PAPER,
        "local": LOCAL,
        "testnet": dataclasses.replace(
            TESTNET, commit_reveal=False, blocks_per_epoch=3, inflation=2**24
        ),
    }
    for name, parameters in worlds.items():
        for count in (1, 4):
            genesis = _genesis(parameters, [10**12 * (i + 1) for i in range(count)])
            cases.append((f"{name} of {count}", _story(genesis, random.Random(count))))
    islands = [self_row(Uid(uid)) for uid in range(4)]
    closed = _genesis(LOCAL, [10**12] * 4, islands)
    cases.append(("closed islands", _story(closed, random.Random(9))))
    cases.append(("every kind", _every_kind()))
    founders = [10**12] * 4
    cases.append(("refusals", refusals(_genesis(LEDGER, founders))))
    committing = _genesis(COMMITTING, founders)
    cases.append(("refusals of commitments", refusals_of_commitments(committing)))
    return cases


CASES: Final = {
    "fixed": fixed_cases,
    "codec": codec_cases,
    "mechanism": mechanism_cases,
    "transition": transition_cases,
}


def vectors(kind: str) -> str:
    """The file of one kind: one case a line."""
    lines = [
        json.dumps({"name": name, "input": case, "output": KINDS_OF_CASE[kind](case)})
        for name, case in CASES[kind]()
    ]
    return f'{{"kind": "{kind}", "cases": [\n' + ",\n".join(lines) + "\n]}\n"


def main(arguments: list[str]) -> int:
    """Write every file, or with `--check` compare; 1 when a file differs."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m interop.generate [--check]", file=sys.stderr)
        return 2
    drifted = []
    VECTORS.mkdir(exist_ok=True)
    for kind in CASES:
        path, text = VECTORS / f"{kind}.json", vectors(kind)
        if arguments and (not path.exists() or path.read_text() != text):
            drifted.append(path.name)
        elif not arguments:
            path.write_text(text)
    if drifted:
        print(f"vectors differ from this implementation: {', '.join(drifted)}", file=sys.stderr)
    return 1 if drifted else 0


def _shapes(n: int) -> dict[str, list[Row]]:
    thin = {Uid(0): WEIGHT_ONE - 1, Uid(n - 1): 1} if n > 1 else {Uid(0): WEIGHT_ONE}
    return {
        "ring": [self_row(Uid((i + 1) % n)) for i in range(n)],
        "star": [self_row(Uid(0)) for _ in range(n)],
        "thin": [Row(tuple(sorted(thin.items()))) for _ in range(n)],
        "even": [rounded_row({Uid(k): 1 for k in range(n)}) for _ in range(n)],
        "islands": [self_row(Uid(i)) for i in range(n)],
    }


def _mechanism(rows: list[Row], stake: int) -> dict[str, Any]:
    n = len(rows)
    return {
        "params": {
            "temperature": 16,
            "depth": 4,
            "cutoff": 0,
            "rank_cutoff": 4096,
            "self_edge_to_pool": False,
            "recovery": 10_737_418,
            "learning_rate": 32_768,
        },
        "stake": [stake] * n,
        "scaling": [SCALING_ONE - i for i in range(n)],
        "rows": [[list(entry) for entry in row.entries] for row in rows],
        "pool": 2**40 + 1,
    }


def _random_mechanism(rng: random.Random, n: int) -> dict[str, Any]:
    rows = [
        rounded_row({Uid(k): rng.randrange(1, 1000) for k in rng.sample(range(n), min(n, 6))})
        for _ in range(n)
    ]
    case = _mechanism(rows, 0)
    case["stake"] = [rng.choice([0, rng.randrange(10**15), 10**9]) for _ in range(n)]
    case["scaling"] = [rng.choice([0, SCALING_ONE, rng.randrange(SCALING_ONE)]) for _ in range(n)]
    case["params"] |= {
        "temperature": rng.choice([1, 10, 16]),
        "depth": rng.choice([1, 2, 4, 8]),
        "cutoff": rng.choice([0, 0, 2**20, 2**34]),
        "rank_cutoff": rng.choice([0, 4096, 65_536]),
        "self_edge_to_pool": rng.random() < 0.5,
        "learning_rate": rng.choice([3_277, 32_768]),
    }
    case["pool"] = rng.randrange(2**55)
    return case


def _owner(number: int) -> Ed25519Signer:
    return Ed25519Signer(bytes([1, number]) * 16)


def _peer(number: int) -> Ed25519Signer:
    return Ed25519Signer(bytes([2, number]) * 16)


def _genesis(parameters: Parameters, stakes: list[int], rows: list[Row] | None = None) -> Genesis:
    count = len(stakes)
    row = rounded_row({Uid(uid): uid + 1 for uid in range(count)})
    return Genesis(
        network="vectors",
        time_ms=1_700_000_000_000,
        modality=Modality.TEXT,
        parameters=parameters,
        pool=Amount(12_345),
        accounts=tuple(
            GenesisAccount(
                owner=AccountId(_owner(number).public_key),
                peer_key=PeerKey(_peer(number).public_key),
                stake=Amount(stake),
                scaling=SCALING_ONE - number * 2**27,
                bond=Amount(stake // 2) if number % 2 == 0 else None,
                announcement=ANNOUNCEMENT,
                row=rows[number] if rows else row,
            )
            for number, stake in enumerate(stakes)
        ),
    )


def _story(genesis: Genesis, rng: random.Random) -> dict[str, Any]:
    """Twelve blocks in which everybody settles now and then and some pay."""
    count = len(genesis.accounts)
    owner_nonce, peer_nonce = [0] * count, [0] * count
    blocks = []
    for height in range(1, 13):
        transactions = []
        for number in range(count):
            common = {
                "account": genesis.accounts[number].owner.hex(),
                "expiry": height + 5,
                "fee": genesis.parameters.fee,
            }
            if rng.random() < 0.6:
                scores = {Uid(k): rng.randrange(1, 100) for k in range(count)}
                if count > 1:
                    scores[Uid(number)] = 1
                row = [list(entry) for entry in rounded_row(scores).entries]
                transactions.append(
                    {
                        **common,
                        "kind": "SetWeights",
                        "content": {"row": row},
                        "nonce": peer_nonce[number],
                        "seed": (bytes([2, number]) * 16).hex(),
                    }
                )
                peer_nonce[number] += 1
            if count > 1 and rng.random() < 0.4:
                to = rng.choice([k for k in range(count) if k != number])
                content = {
                    "recipient": genesis.accounts[to].owner.hex(),
                    "amount": rng.choice([1, 10**6, 10**9]),
                }
                transactions.append(
                    {
                        **common,
                        "kind": "Transfer",
                        "content": content,
                        "nonce": owner_nonce[number],
                        "seed": (bytes([1, number]) * 16).hex(),
                    }
                )
                owner_nonce[number] += 1
            if rng.random() < 0.1:
                # Refused: the nonce is far ahead.
                transactions.append({**transactions[-1], "nonce": 99} if transactions else {})
        blocks.append(
            {
                "time_ms": genesis.time_ms + 1_000 * height,
                "parent_hash": rng.randbytes(32).hex(),
                "transactions": [each for each in transactions if each],
            }
        )
    document = json.loads(genesis_to_json(genesis))
    return {"genesis": document, "blocks": blocks, "entries": True}


def _every_kind() -> dict[str, Any]:
    """One accepted transaction of each kind, over two epochs of three blocks."""
    parameters = dataclasses.replace(
        TESTNET, blocks_per_epoch=3, work_target=2**256 - 1, inflation=2**24
    )
    genesis = _genesis(parameters, [10**12] * 4)
    row, salt = rounded_row({Uid(0): 1, Uid(2): 2}), b"s" * 32
    commitment = commitment_of(
        chain_id=genesis.chain_id,
        peer_key=genesis.accounts[1].peer_key,
        registered=Height(0),
        epoch=Epoch(0),
        salt=salt,
        row=row,
    )
    announcement, owners = ANNOUNCEMENT.encode().hex(), [a.owner.hex() for a in genesis.accounts]
    newcomer, guest = _owner(20).public_key.hex(), _owner(21).public_key.hex()
    fee = parameters.fee

    def ask(number: int, kind: str, content: dict[str, Any], **more: Any) -> dict[str, Any]:
        by_peer = kind in ("CommitWeights", "RevealWeights", "Announce", "Unjail", "SetWeights")
        return {
            "kind": kind,
            "account": _owner(number).public_key.hex(),
            "nonce": 0,
            "expiry": 50,
            "fee": fee,
            "content": content,
            "seed": (bytes([2 if by_peer else 1, number]) * 16).hex(),
            **more,
        }

    peer = {number: _peer(number).public_key.hex() for number in (9, 20, 21)}
    entrance = {"peer_key": peer[20], "ancestor": 0, "work": 7, "announcement": announcement}
    invited = {"owner": guest, "peer_key": peer[21], "announcement": announcement}
    seeds = {number: (bytes([2, number]) * 16).hex() for number in peer}
    blocks = [
        [
            ask(1, "CommitWeights", {"commitment": commitment.hex()}),
            ask(1, "SetWeights", {"row": [[0, WEIGHT_ONE]]}, nonce=1),
            ask(3, "Validate", {"bond": 10**10}),
            ask(2, "Unvalidate", {}),
        ],
        [
            ask(20, "Subscribe", entrance, fee=0, peer_seed=seeds[20]),
            ask(0, "SubscribeFor", invited, peer_seed=seeds[21]),
            ask(3, "Announce", {"announcement": announcement}),
            ask(3, "Unjail", {}, nonce=1),
        ],
        [
            ask(0, "RotatePeerKey", {"peer_key": peer[9]}, nonce=1, peer_seed=seeds[9]),
            ask(0, "Transfer", {"recipient": newcomer, "amount": 5 * fee}, nonce=2),
        ],
        [
            ask(
                1,
                "RevealWeights",
                {"salt": salt.hex(), "row": [list(entry) for entry in row.entries]},
                nonce=1,
                fee=0,
            ),
            ask(20, "Unsubscribe", {"recipient": owners[1]}, nonce=1),
            ask(20, "Transfer", {"recipient": owners[1], "amount": 1}, nonce=2),
        ],
        [],
        [],
    ]
    return {
        "genesis": json.loads(genesis_to_json(genesis)),
        "blocks": [
            {"time_ms": genesis.time_ms + 1_000 * height, "transactions": transactions}
            for height, transactions in enumerate(blocks, 1)
        ],
        "entries": True,
    }


def _contents(row: Row) -> list[Content]:
    other = AccountId(_owner(1).public_key)
    return [
        SetWeights(row=row),
        Transfer(recipient=other, amount=Amount(5)),
        RotatePeerKey(peer_key=PeerKey(_peer(9).public_key)),
        Announce(announcement=ANNOUNCEMENT),
    ]


def _signed(chain_id: ChainId, content: Content) -> bytes:
    draft = Draft(
        chain_id=chain_id,
        account=AccountId(_owner(0).public_key),
        nonce=Nonce(1),
        expiry=Height(100),
        fee=Amount(10**6),
        content=content,
    )
    return draft.sign(_owner(0), _peer(9) if isinstance(content, RotatePeerKey) else None).encoded


def _mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    at = rng.randrange(len(out))
    match rng.randrange(4):
        case 0:
            out[at] ^= 1 << rng.randrange(8)
        case 1:
            del out[at]
        case 2:
            out.insert(at, rng.randrange(256))
        case _:
            del out[at:]
    return bytes(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
