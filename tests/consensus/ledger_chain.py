"""A chain without an engine: blocks of the test's transactions, executed twice and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from consensus.account import Announcement
from consensus.block import Block, BlockKind, Body, Evidence, Header
from consensus.crypto import KeyedHashSigner, KeyedHashVerifier
from consensus.entries import entries_of, state_of_entries
from consensus.errors import BlockFault, InvalidBlock, InvalidTransaction, TransactionFault
from consensus.genesis import Genesis, GenesisAccount, genesis_state
from consensus.params import LOCAL, Parameters
from consensus.state import State
from consensus.transaction import Content, Role, Transaction, role_of
from consensus.transition import Executed, begin, execute, state_transition
from consensus.types import (
    ZERO_DIGEST,
    AccountId,
    Amount,
    Digest,
    Height,
    Modality,
    PeerKey,
    Uid,
    View,
)
from consensus.vote import Certificate
from consensus.wallet import Draft, draft_of
from consensus.weights import Row
from consensus.work import find_work

ANNOUNCEMENT = Announcement(modality=Modality.TEXT, dim=64, vocabulary=256)
EASY = 2**256 - 1
VERIFIER = KeyedHashVerifier()
TEST_PARAMETERS = dataclasses.replace(
    LOCAL, blocks_per_epoch=4, work_target=EASY, bond_min=1_000, bond_window_epochs=2
)


def owner_signer(number: int) -> KeyedHashSigner:
    return KeyedHashSigner(b"owner %d" % number)


def peer_signer(number: int) -> KeyedHashSigner:
    return KeyedHashSigner(b"peer %d" % number)


def account_id(number: int) -> AccountId:
    return AccountId(owner_signer(number).public_key)


def peer_key(number: int) -> PeerKey:
    return PeerKey(peer_signer(number).public_key)


def even_row(count: int) -> Row:
    share, left = divmod(65_536, count)
    return Row(tuple((Uid(uid), share + (left if uid == 0 else 0)) for uid in range(count)))


def make_genesis(
    stakes: Sequence[int],
    parameters: Parameters = TEST_PARAMETERS,
    *,
    rows: Sequence[Row] | None = None,
    bonds: Sequence[int | None] | None = None,
    scaling: Sequence[int] | None = None,
    pool: int = 0,
) -> Genesis:
    """Accounts 0, 1, ... with keys from `owner_signer` and `peer_signer`."""
    count = len(stakes)
    bonds = bonds if bonds is not None else [stake // 2 or None for stake in stakes]
    return Genesis(
        network="test",
        time_ms=1_000,
        modality=Modality.TEXT,
        parameters=parameters,
        pool=Amount(pool),
        accounts=tuple(
            GenesisAccount(
                owner=account_id(number),
                peer_key=peer_key(number),
                stake=Amount(stake),
                scaling=2**30 if scaling is None else scaling[number],
                bond=None if (bond := bonds[number]) is None else Amount(bond),
                announcement=ANNOUNCEMENT,
                row=even_row(min(count, 64)) if rows is None else rows[number],
            )
            for number, stake in enumerate(stakes)
        ),
    )


class LedgerChain:
    """The newest state of a chain and what is needed to extend it."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.parameters = genesis.parameters
        self.state: State = genesis_state(genesis)
        self.parent_hash: Digest = Digest(genesis.chain_id)
        self.view = 0
        self.blocks: list[Block] = []
        self.last: Executed | None = None

    def draft(self, number: int, content: Content, **changes: object) -> Draft:
        draft = draft_of(self.state, self.parameters, account_id(number), content)
        return dataclasses.replace(draft, **changes)  # type: ignore[arg-type]

    def sign(self, number: int, content: Content, **changes: object) -> Transaction:
        """Signed by account `number`, with the peer key that it has in the ledger."""
        draft = self.draft(number, content, **changes)
        signer = owner_signer(number) if role_of(content) is Role.OWNER else peer_signer(number)
        named = getattr(content, "peer_key", None)
        other = None if named is None else next(s for s in PEERS if s.public_key == named)
        return draft.sign(signer, other)

    def header(self, **changes: object) -> Header:
        """Of the next normal block, without roots."""
        state = self.state
        header = Header(
            chain_id=state.chain_id,
            epoch=state.epoch,
            view=View(self.view + 1),
            height=Height(state.height + 1),
            kind=BlockKind.NORMAL,
            parent_hash=self.parent_hash,
            parent_view=View(self.view),
            time_ms=state.time_ms + 500,
            proposer=account_id(0),
            body_root=ZERO_DIGEST,
            state_root=ZERO_DIGEST,
            vset_hash=state.voters.hash,
            next_vset_hash=ZERO_DIGEST,
            receipts_root=ZERO_DIGEST,
        )
        return dataclasses.replace(header, **changes)  # type: ignore[arg-type]

    def make_block(
        self,
        *transactions: Transaction,
        evidence: tuple[Evidence, ...] = (),
        attest: Certificate | None = None,
        **changes: object,
    ) -> Block:
        """A valid block with these contents. Raises InvalidBlock."""
        encoded = tuple(transaction.encoded for transaction in transactions)
        body = Body(transactions=encoded, evidence=evidence, attest=attest)
        header = self.header(**changes)
        executed = execute(self.state, header, body, self.parameters, verifier=VERIFIER)
        self.last = executed
        header = dataclasses.replace(
            header,
            body_root=body.root,
            state_root=executed.state.root,
            next_vset_hash=executed.next_vset_hash,
            receipts_root=executed.receipts_root,
        )
        return Block(header=header, body=body)

    def extend(self, *transactions: Transaction, **contents: object) -> Block:
        """Make a block, execute it as everybody else does, and move on."""
        block = self.make_block(*transactions, **contents)  # type: ignore[arg-type]
        before = self.state.root
        state = state_transition(self.state, block, self.parameters, verifier=VERIFIER)
        assert self.state.root == before
        new_epoch = state.epoch != self.state.epoch
        self.state, self.parent_hash = state, block.hash
        self.view = 0 if new_epoch else self.view + 1
        self.blocks.append(block)
        return block

    def extend_to_boundary(self) -> None:
        """Empty blocks until the epoch ends."""
        epoch = self.state.epoch
        while self.state.epoch == epoch:
            self.extend()

    def refusal(self, transaction: Transaction, *before: Transaction) -> TransactionFault:
        """Why `transaction` may not follow `before` in the next block; the draft is unchanged."""
        execution = begin(self.state, self.header(), self.parameters, verifier=VERIFIER)
        for each in before:
            execution.apply(each)
        same = begin(self.state, self.header(), self.parameters, verifier=VERIFIER)
        for each in before:
            same.apply(each)
        try:
            execution.apply(transaction)
        except InvalidTransaction as error:
            unchanged = execution.finish(Body()).state.root
            assert unchanged == same.finish(Body()).state.root
            return error.reason
        raise AssertionError("the transaction was accepted")

    def subscription(self, number: int, **changes: object) -> Transaction:
        """A Subscribe of the new account `number` with enough work."""
        from consensus.transaction import Subscribe

        ancestor, digest = self.state.ancestors[-1]
        work = find_work(
            self.state.chain_id,
            account_id(number),
            peer_key(number),
            digest,
            self.state.work_target,
        )
        assert work is not None
        content = Subscribe(
            peer_key=peer_key(number), ancestor=ancestor, work=work, announcement=ANNOUNCEMENT
        )
        return self.sign(number, dataclasses.replace(content, **changes))  # type: ignore[arg-type]

    def check_entries(self) -> None:
        """The state survives its own encoding."""
        back = state_of_entries(entries_of(self.state))
        assert back.root == self.state.root


PEERS = [peer_signer(number) for number in range(200)]


def block_refusal(chain: LedgerChain, block: Block) -> BlockFault:
    """Why `block` may not extend the chain."""
    before = chain.state.root
    try:
        state_transition(chain.state, block, chain.parameters, verifier=VERIFIER)
    except InvalidBlock as error:
        assert chain.state.root == before
        return error.reason
    raise AssertionError("the block was accepted")
