"""Transition cases in which transactions are refused: every reason that a case can reach.

The rule: each refusal stands alone, its transaction would pass but for that one fault. `jailed` and
`tombstoned` need signed evidence and attests, which a transition case does not carry.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from consensus.crypto import Ed25519Signer
from consensus.genesis import Genesis
from consensus.genesis_text import genesis_to_json
from consensus.params import LOCAL, TESTNET, Parameters
from consensus.transaction import Content, RotatePeerKey, Transfer, commitment_of
from consensus.types import AccountId, Amount, ChainId, Epoch, Height, Nonce, PeerKey, Uid
from consensus.wallet import Draft
from consensus.weights import Row

SALT: Final = b"s" * 32
OWNER, PEER = 1, 2
"""First byte of the seeds of the two keys of an account."""
BY_PEER: Final = frozenset({"SetWeights", "CommitWeights", "RevealWeights", "Announce", "Unjail"})

LEDGER: Final = dataclasses.replace(
    LOCAL, blocks_per_epoch=100, work_target=2**256 - 1, accounts_max=8
)
COMMITTING: Final = dataclasses.replace(TESTNET, blocks_per_epoch=3, work_target=2**200)

Fields = dict[str, Any]


def seed_of(role: int, number: int) -> bytes:
    """The seed of account `number`'s owner or peer key."""
    return bytes([role, number]) * 16


def key_of(role: int, number: int) -> str:
    """The public key of that seed, hex."""
    return Ed25519Signer(seed_of(role, number)).public_key.hex()


def ask(parameters: Parameters, number: int, kind: str, content: Fields, **more: Any) -> Fields:
    """A transaction of account `number` as a case describes it."""
    role = PEER if kind in BY_PEER else OWNER
    common = {"nonce": 0, "expiry": 50, "fee": parameters.fee, "seed": seed_of(role, number).hex()}
    return {"kind": kind, "account": key_of(OWNER, number), "content": content, **common, **more}


def refusals(genesis: Genesis) -> Fields:
    """Four accounts of which 0 and 2 vote; `genesis` has the parameters LEDGER."""
    announcement = genesis.accounts[0].announcement.encode().hex()

    def of(number: int, kind: str, content: Fields, **more: Any) -> Fields:
        return ask(LEDGER, number, kind, content, **more)

    def pay(number: int, amount: int = 1, to: int = 3, **more: Any) -> Fields:
        content = {"recipient": key_of(OWNER, to), "amount": amount}
        return of(number, "Transfer", content, **more)

    def enter(number: int, work: int = 7, **more: Any) -> Fields:
        entrance = {"peer_key": key_of(PEER, number), "ancestor": 0, "work": work}
        asked: Fields = {"fee": 0, "peer_seed": seed_of(PEER, number).hex(), **more}
        return of(number, "Subscribe", {**entrance, "announcement": announcement}, **asked)

    def invite(owner: int, peer: int) -> Fields:
        invited = {"owner": key_of(OWNER, owner), "peer_key": key_of(PEER, peer)}
        countersigned = {"peer_seed": seed_of(PEER, peer).hex()}
        return of(1, "SubscribeFor", {**invited, "announcement": announcement}, **countersigned)

    def rotate(to: int) -> Fields:
        proof = {"peer_seed": seed_of(PEER, to).hex()}
        return of(1, "RotatePeerKey", {"peer_key": key_of(PEER, to)}, **proof)

    blocks: list[list[Fields | str]] = [
        [
            _of_another_chain(),
            pay(1, seed=seed_of(OWNER, 2).hex()),
            pay(30),
            pay(1, nonce=1),
            pay(1, expiry=0),
            pay(1, expiry=602),
            pay(1, fee=LEDGER.fee - 1),
            pay(1, fee=LEDGER.fee * 1_000 + 1),
            pay(1, amount=0),
            pay(1, amount=2 * 10**12),
            pay(0, amount=6 * 10**11),
            pay(1, to=1),
            pay(1, to=30),
            _without_proof(genesis),
            rotate(2),
            rotate(1),
            of(1, "SetWeights", {"row": [[77, 65_536]]}),
            of(1, "SetWeights", {"row": [[1, 65_536]]}),
            of(1, "CommitWeights", {"commitment": "00" * 32}),
            of(1, "RevealWeights", {"salt": SALT.hex(), "row": [[0, 65_536]]}, fee=0),
            invite(2, 9),
            invite(9, 2),
            enter(20),
            of(1, "Validate", {"bond": 1}),
            of(0, "Validate", {"bond": 5 * 10**11}),
            of(1, "Unvalidate", {}),
            of(1, "Unjail", {}),
            of(0, "Unsubscribe", {"recipient": key_of(OWNER, 1)}),
        ],
        [
            pay(1),
            pay(1),
            of(2, "Unvalidate", {}),
            of(2, "Unvalidate", {}, nonce=1),
            *(enter(number) for number in range(20, 25)),
            of(20, "Announce", {"announcement": announcement}),
        ],
        [
            enter(24),
            pay(1, amount=10 * LEDGER.fee, to=20, nonce=1),
            of(20, "Unsubscribe", {"recipient": key_of(OWNER, 1)}, nonce=1),
            enter(20, nonce=2),
        ],
    ]
    return _case(genesis, blocks)


def refusals_of_commitments(genesis: Genesis) -> Fields:
    """Commit and reveal out of order; `genesis` has the parameters COMMITTING."""
    row = Row(((Uid(0), 65_536),))
    commitment = commitment_of(
        chain_id=genesis.chain_id,
        peer_key=genesis.accounts[1].peer_key,
        registered=Height(0),
        epoch=Epoch(0),
        salt=SALT,
        row=row,
    ).hex()
    announcement = genesis.accounts[0].announcement.encode().hex()

    def of(kind: str, content: Fields, number: int = 1, **more: Any) -> Fields:
        return ask(COMMITTING, number, kind, content, **more)

    def reveal(salt: bytes, **more: Any) -> Fields:
        shown = {"salt": salt.hex(), "row": [list(entry) for entry in row.entries]}
        return of("RevealWeights", shown, **{"fee": 0, "nonce": 1, **more})

    entrance = {"peer_key": key_of(PEER, 20), "ancestor": 0, "work": 7}
    blocks = [
        [
            of("SetWeights", {"row": [[0, 65_536]]}),
            reveal(SALT, nonce=0),
            of("CommitWeights", {"commitment": commitment}),
            of("CommitWeights", {"commitment": commitment}, nonce=1),
            reveal(SALT),
        ],
        [
            of(
                "Subscribe",
                {**entrance, "announcement": announcement},
                number=20,
                fee=0,
                peer_seed=seed_of(PEER, 20).hex(),
            )
        ],
        [],
        [reveal(b"t" * 32), reveal(SALT), reveal(SALT, nonce=2)],
    ]
    return _case(genesis, blocks)


def _of_another_chain() -> str:
    content = Transfer(recipient=AccountId(bytes.fromhex(key_of(OWNER, 3))), amount=Amount(1))
    return _draft(ChainId(bytes(32)), content).sign(Ed25519Signer(seed_of(OWNER, 1))).encoded.hex()


def _without_proof(genesis: Genesis) -> str:
    """A rotation whose countersignature is spoiled in its last bytes."""
    content = RotatePeerKey(peer_key=PeerKey(bytes.fromhex(key_of(PEER, 9))))
    signers = Ed25519Signer(seed_of(OWNER, 1)), Ed25519Signer(seed_of(PEER, 9))
    encoded = _draft(genesis.chain_id, content).sign(*signers).encoded
    return (encoded[:-32] + bytes(32)).hex()


def _draft(chain_id: ChainId, content: Content) -> Draft:
    """Of account 1, its owner key's first."""
    return Draft(
        chain_id=chain_id,
        account=AccountId(bytes.fromhex(key_of(OWNER, 1))),
        nonce=Nonce(0),
        expiry=Height(50),
        fee=Amount(LEDGER.fee),
        content=content,
    )


def _case(genesis: Genesis, blocks: Sequence[Sequence[Mapping[str, Any] | str]]) -> Fields:
    return {
        "genesis": json.loads(genesis_to_json(genesis)),
        "blocks": [
            {"time_ms": genesis.time_ms + 1_000 * height, "transactions": transactions}
            for height, transactions in enumerate(blocks, 1)
        ],
        "entries": True,
    }
