"""The share experiment over real sockets, small: stake decides, and receipts say the same."""

import pytest

from experiments.queue_share import contend


@pytest.mark.network
@pytest.mark.timeout(120)
async def test_shares_follow_stake_beside_a_flood() -> None:
    result = await contend([1, 2, 4], flood=10, in_flight=8, service_s=0.002, services=20)
    assert [sender["stake"] for sender in result["senders"]] == [1, 2, 4]
    assert result["max_relative_error"] <= 0.1
    assert result["floor"]["measured_share"] <= 2 * result["floor"]["expected_share"]
    receipts = result["receipts"]
    assert (receipts["repeated"], receipts["out_of_order"]) == (0, 0)
    assert receipts["not_seen"] <= 1
