"""A stateful machine: random and hostile transactions, evidence, epochs; supply after every event.

One model is kept beside the ledger: what every accepted transaction may do to the supply. The
product asserts stake + pool = issued itself; the machine sums it up again from outside.
"""

from __future__ import annotations

import dataclasses

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consensus.block import Body
from consensus.entries import entries_of, state_of_entries
from consensus.errors import InvalidBlock, InvalidTransaction
from consensus.params import LOCAL, PAPER, Parameters
from consensus.transaction import (
    Announce,
    CommitWeights,
    Content,
    RevealWeights,
    RotatePeerKey,
    SetWeights,
    Subscribe,
    SubscribeFor,
    Transaction,
    Transfer,
    Unjail,
    Unsubscribe,
    Unvalidate,
    Validate,
    commitment_of,
)
from consensus.transition import Execution, begin
from consensus.types import Amount, Digest, Epoch, Height, Nonce, PeerKey
from consensus.weights import Row
from consensus.work import find_work
from tests.consensus.ledger_chain import (
    ANNOUNCEMENT,
    EASY,
    PEERS,
    VERIFIER,
    LedgerChain,
    account_id,
    make_genesis,
    owner_signer,
    peer_key,
)
from tests.consensus.ledger_strategies import SCALE, amounts, rows
from tests.consensus.test_transition import double_vote

WORLDS: list[Parameters] = [
    dataclasses.replace(
        LOCAL, blocks_per_epoch=3, work_target=EASY, bond_min=5, accounts_max=8, fee=3,
        subscription_price=10, bond_window_epochs=2,
    ),
    dataclasses.replace(
        LOCAL, blocks_per_epoch=2, work_target=EASY, commit_reveal=True, fee=0, bond_min=1,
        inflation=2**31, supply_cap=10**6,
    ),
    dataclasses.replace(PAPER, work_target=EASY, accounts_max=12),
]  # fmt: skip
numbers = st.one_of(st.integers(0, 3), st.integers(0, 3), st.integers(0, 11))
"""Mostly people who have an account."""


class Ledger(RuleBasedStateMachine):
    """Twelve people with keys, of whom a few have accounts at the start."""

    @initialize(
        world=st.sampled_from(WORLDS),
        stakes=st.lists(st.integers(0, 10**5), min_size=1, max_size=6),
    )
    def start(self, world: Parameters, stakes: list[int]) -> None:
        bonds = [max(stakes[0], 10), *[None] * (len(stakes) - 1)]
        stakes = [max(stakes[0], 10), *stakes[1:]]
        self.chain = LedgerChain(make_genesis(stakes, world, bonds=bonds))
        self.execution: Execution = self.open_block()
        self.taken: list[Transaction] = []
        self.seen: list[Transaction] = []
        self.hidden: dict[int, tuple[bytes, Row]] = {}
        self.accepted = 0

    def open_block(self) -> Execution:
        return begin(
            self.chain.state, self.chain.header(), self.chain.parameters, verifier=VERIFIER
        )

    def offer(self, number: int, content: Content, **changes: object) -> bool:
        """Sign with the key that the ledger has now, as a client of the open block would."""
        base = self.chain.state
        self.chain.state = self.execution.draft
        try:
            draft = self.chain.draft(number, content, **changes)
        finally:
            self.chain.state = base
        signer = owner_signer(number)
        uid = self.execution.draft.uid_of_owner.get(account_id(number))
        if draft.role.name == "PEER" and uid is not None:
            current = self.execution.draft.accounts[uid].peer_key
            signer = next(each for each in PEERS if each.public_key == current)
        named = getattr(content, "peer_key", None)
        other = next((each for each in PEERS if each.public_key == named), None)
        return self.submit(draft.sign(signer, other))

    def submit(self, transaction: Transaction) -> bool:
        draft = self.execution.draft
        issued, held = draft.issued, draft.staked + draft.pool
        try:
            receipt = self.execution.apply(transaction)
        except InvalidTransaction:
            assert (draft.issued, draft.staked + draft.pool) == (issued, held)
            return False
        assert draft.issued == issued + receipt.issued
        self.taken.append(transaction)
        self.seen.append(transaction)
        self.accepted += 1
        return True

    @rule(number=numbers, other=numbers, amount=amounts)
    def transfer(self, number: int, other: int, amount: int) -> None:
        uid = self.execution.draft.uid_of_owner.get(account_id(number))
        if uid is not None and amount > 10:
            amount %= self.execution.draft.stake[uid] + 1
        self.offer(number, Transfer(recipient=account_id(other), amount=Amount(amount)))

    @rule(number=numbers, row=rows(uids=7))
    def set_weights(self, number: int, row: Row) -> None:
        self.offer(number, SetWeights(row=row))

    @rule(number=numbers, row=rows(uids=4), salt=st.binary(min_size=32, max_size=32))
    def commit(self, number: int, row: Row, salt: bytes) -> None:
        draft = self.execution.draft
        uid = draft.uid_of_owner.get(account_id(number))
        if uid is None:
            return
        digest = commitment_of(
            chain_id=draft.chain_id,
            peer_key=draft.accounts[uid].peer_key,
            registered=draft.accounts[uid].registered,
            epoch=Epoch(draft.epoch),
            salt=salt,
            row=row,
        )
        if self.offer(number, CommitWeights(commitment=digest)):
            self.hidden[number] = (salt, row)

    @precondition(lambda self: self.hidden)
    @rule(data=st.data())
    def reveal(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.hidden)))
        salt, row = self.hidden[number]
        self.offer(number, RevealWeights(salt=salt, row=row))

    @rule(number=numbers, key=st.integers(0, 30))
    def rotate(self, number: int, key: int) -> None:
        self.offer(number, RotatePeerKey(peer_key=peer_key(key)))

    @rule(number=numbers, key=st.integers(0, 30), back=st.integers(0, 3))
    def subscribe(self, number: int, key: int, back: int) -> None:
        draft = self.execution.draft
        known = draft.ancestors[: -1 - back] or draft.ancestors
        ancestor, digest = known[-1]
        new: PeerKey = peer_key(key)
        target = draft.work_target
        work = find_work(draft.chain_id, account_id(number), new, digest, target, tries=40)
        content = Subscribe(
            peer_key=new, ancestor=ancestor, work=work or 0, announcement=ANNOUNCEMENT
        )
        self.offer(number, content)

    @rule(number=numbers, other=numbers, key=st.integers(0, 30))
    def subscribe_for(self, number: int, other: int, key: int) -> None:
        content = SubscribeFor(
            owner=account_id(other), peer_key=peer_key(key), announcement=ANNOUNCEMENT
        )
        self.offer(number, content)

    @rule(number=numbers, other=numbers)
    def unsubscribe(self, number: int, other: int) -> None:
        self.offer(number, Unsubscribe(recipient=account_id(other)))

    @rule(number=numbers, bond=amounts)
    def validate(self, number: int, bond: int) -> None:
        self.offer(number, Validate(bond=Amount(bond)))

    @rule(number=numbers, content=st.sampled_from([Unvalidate(), Unjail()]))
    def standing(self, number: int, content: Content) -> None:
        self.offer(number, content)

    @rule(number=numbers, fee=amounts, nonce=st.integers(0, 5), expiry=st.integers(0, 700))
    def hostile_fields(self, number: int, fee: int, nonce: int, expiry: int) -> None:
        self.offer(
            number,
            Announce(announcement=ANNOUNCEMENT),
            fee=Amount(fee),
            nonce=Nonce(nonce),
            expiry=Height(expiry),
        )

    @precondition(lambda self: self.seen)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        assert not self.submit(data.draw(st.sampled_from(self.seen[-30:])))

    @rule(number=st.integers(0, 5), view=st.integers(1, 3), guilty=st.booleans())
    def close_block(self, number: int, view: int, guilty: bool) -> None:
        """Everybody else executes what the proposer built, from its bytes."""
        evidence = (double_vote(self.chain, number, view=view),) if guilty else ()
        proposed = None
        try:
            proposed = self.execution.finish(Body(evidence=evidence))
        except InvalidBlock:
            evidence = ()
        self.chain.extend(*self.taken, evidence=evidence)
        if proposed is not None:
            assert proposed.state.root == self.chain.state.root
        self.execution, self.taken = self.open_block(), []

    @rule(blocks=st.integers(1, 12))
    def time_passes(self, blocks: int) -> None:
        self.close_block(number=0, view=1, guilty=False)
        for _ in range(blocks):
            self.chain.extend()
        self.execution = self.open_block()

    @rule()
    def a_node_restarts_from_entries(self) -> None:
        back = state_of_entries(entries_of(self.chain.state))
        assert back.root == self.chain.state.root
        self.chain.state = back
        self.close_block(number=0, view=1, guilty=False)

    @invariant()
    def supply_is_conserved(self) -> None:
        if not hasattr(self, "chain"):
            return
        for state in (self.chain.state, self.execution.draft):
            stakes = list(state.stake.values())
            assert sum(stakes) + state.pool == state.issued <= self.chain.parameters.supply_cap
            assert all(stake >= 0 for stake in stakes)
            assert state.pool >= 0
            assert all(0 <= a <= 2**30 for a in state.scaling.values())
            assert len(state.accounts) <= self.chain.parameters.accounts_max
            assert len(state.voters) >= 1

    @invariant()
    def indexes_agree_with_tables(self) -> None:
        if not hasattr(self, "chain"):
            return
        state = self.execution.draft
        for uid, account in state.accounts.items():
            assert state.uid_of_owner[account.owner] == uid
            assert state.uid_of_peer(account.peer_key) == uid
        assert len(state.uid_of_owner) == len(state.accounts)


Ledger.TestCase.settings = settings(
    max_examples=60 * SCALE,
    stateful_step_count=100,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLedgerFuzz = Ledger.TestCase


def test_hashes_of_the_unknown_are_refused_everywhere() -> None:
    chain = LedgerChain(make_genesis([10**6], WORLDS[1], bonds=[10]))
    reveal = RevealWeights(salt=bytes(32), row=Row(((0, 65_536),)))  # type: ignore[arg-type]
    assert chain.refusal(chain.sign(0, reveal)).value == "commit-missing"
    chain.extend(chain.sign(0, CommitWeights(commitment=Digest(bytes(32)))))
