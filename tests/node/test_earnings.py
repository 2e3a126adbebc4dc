"""Earnings: every change of a stake has a cause, and the causes add up."""

from __future__ import annotations

import dataclasses

from consensus.transaction import Announce, SetWeights, SubscribeFor, Transfer, Unsubscribe
from consensus.types import Amount
from node.earnings import Cause, describe, facts_of, trace_earnings
from tests.consensus.ledger_chain import (
    ANNOUNCEMENT,
    TEST_PARAMETERS,
    VERIFIER,
    LedgerChain,
    account_id,
    even_row,
    make_genesis,
    peer_key,
)
from tests.consensus.test_transition import double_vote

TOKENS = 10**13


def make_chain() -> LedgerChain:
    parameters = dataclasses.replace(TEST_PARAMETERS, fee=7)
    chain = LedgerChain(
        make_genesis([TOKENS] * 4, parameters, bonds=[TOKENS // 2, 5_000, None, None])
    )
    for _ in range(6):
        chain.extend(*[chain.sign(i, SetWeights(row=even_row(4))) for i in range(4)])
    pay = Transfer(recipient=account_id(2), amount=Amount(500))
    chain.extend(chain.sign(1, pay), chain.sign(2, Announce(announcement=ANNOUNCEMENT)))
    paid = SubscribeFor(owner=account_id(9), peer_key=peer_key(9), announcement=ANNOUNCEMENT)
    chain.extend(chain.sign(2, paid))
    chain.extend(evidence=(double_vote(chain, 0, epoch=chain.state.epoch),))
    chain.extend(chain.sign(3, Unsubscribe(recipient=account_id(2))))
    chain.extend_to_boundary()
    return chain


def test_the_causes_add_up_for_everybody() -> None:
    chain = make_chain()
    traced = {
        number: trace_earnings(chain.genesis, chain.blocks, account_id(number), VERIFIER)
        for number in (0, 1, 2, 3, 9, 77)
    }
    for number, earnings in traced.items():
        uid = chain.state.uid_of_owner.get(account_id(number))
        assert earnings.end == (0 if uid is None else chain.state.stake[uid])
    assert traced[1].total(Cause.SENT) == -500
    assert traced[1].total(Cause.FEE) == -7
    assert traced[2].total(Cause.FEE) == -14
    assert traced[2].total(Cause.SUBSCRIPTION) == -chain.parameters.subscription_price
    assert traced[2].total(Cause.RECEIVED) > 500
    assert traced[2].total(Cause.PAYOUT) > 0
    assert traced[2].total(Cause.SETTLED_BY_OTHER) == sum(traced[2].by_payer().values()) > 0
    assert list(traced[2].by_payer()) != []
    assert traced[3].total(Cause.LEFT) < 0
    assert traced[0].total(Cause.SLASHED) < 0
    assert traced[77].entries == []


def test_the_history_in_words_and_as_facts() -> None:
    chain = make_chain()
    earnings = trace_earnings(chain.genesis, chain.blocks, account_id(2), VERIFIER)
    text = describe(earnings)
    assert "earned from peers that gave it weight" in text
    assert f"of it from {account_id(0).hex()[:16]}" in text
    facts = facts_of(earnings)
    assert facts["start"] + sum(facts["totals"].values()) == facts["end"]
    assert sum(entry["amount"] for entry in facts["entries"]) == facts["end"] - facts["start"]
