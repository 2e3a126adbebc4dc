"""Every order of everything in a few views: nothing unsafe is reachable, and broken engines are."""

import os

import pytest

from consensus.engine import Engine
from consensus.engine_view import ViewRecord
from consensus.vote import VoteKind
from node.simulator.mutant import NoGapCheck, NoLog
from tests.consensus.model_check import Broken, check

SCALE = int(os.environ.get("AGORA_TEST_SCALE", "1"))


class FinalizesAfterNullify(Engine):
    def _may_finalize(self, record: ViewRecord) -> bool:
        return VoteKind.FINALIZE not in record.own_ballots


class NullifiesAfterFinalize(Engine):
    def _may_nullify(self, record: ViewRecord) -> bool:
        return VoteKind.NULLIFY not in record.own_ballots and self.may_sign


NEAREST = 15_000 * SCALE
"""States visited where all would take minutes; AGORA_TEST_SCALE multiplies them."""


@pytest.mark.parametrize("byzantine_leads", [1, 2, 3])
def test_one_view_is_safe_in_every_order(byzantine_leads: int) -> None:
    found = check(byzantine_leads, views=1, states_max=NEAREST)
    assert found.commits > 0


@pytest.mark.parametrize("byzantine_leads", [1, 2, 3, 4])
def test_two_views_of_a_bare_quorum_are_safe_in_every_order(byzantine_leads: int) -> None:
    found = check(byzantine_leads, views=2, honest=2, states_max=NEAREST)
    assert found.commits > 0


@pytest.mark.parametrize("byzantine_leads", [1, 2])
def test_a_view_is_safe_whoever_crashes_when(byzantine_leads: int) -> None:
    found = check(byzantine_leads, views=1, honest=2, restarts=True, states_max=NEAREST)
    assert found.commits > 0


@pytest.mark.parametrize("byzantine_leads", [1, 2])
def test_three_views_are_safe_in_the_nearest_orders(byzantine_leads: int) -> None:
    found = check(byzantine_leads, views=3, honest=2, states_max=NEAREST // 3)
    assert found.commits > 0


def test_finalizing_what_was_nullified_is_found() -> None:
    with pytest.raises(Broken, match="final and skipped"):
        check(1, views=1, engine_type=FinalizesAfterNullify)


def test_nullifying_what_was_finalized_is_found() -> None:
    with pytest.raises(Broken, match="final and skipped"):
        check(1, views=1, honest=2, restarts=True, engine_type=NullifiesAfterFinalize)


def test_forgetting_votes_at_a_restart_is_found() -> None:
    with pytest.raises(Broken, match=r"two blocks|final and skipped"):
        check(1, views=1, honest=2, restarts=True, engine_type=NoLog)


def test_skipping_without_nullification_is_found() -> None:
    with pytest.raises(Broken, match=r"two chains are final|halts: safety violation"):
        check(2, views=2, engine_type=NoGapCheck)
