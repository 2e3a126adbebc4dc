"""What requests really cost: measured time against promised cost, smoothed per sender.

    rate  = moving average of promised cost per second, over all senders
    ratio = moving average of seconds · rate / promised cost, per sender

Rule: a sender pays for what its requests take when that differs from what their headers promise by
more than chance does. One slow call (a garbage collection, another process) moves nobody: a single
call changes a ratio by at most a third, which is within the band that is left alone.
"""

from collections import OrderedDict

from p2p.identity import PeerId

RATE_MEMORY = 0.8
RATIO_MEMORY = 0.9
RATIO_MAX = 4.0  # of a single call: as the queue's own correction
BAND = 1.5  # ratios within 1/1.5 and 1.5 are chance
SENDERS_MAX = 4_096  # full: the one not seen for longest is forgotten
SECONDS_MIN = 1e-6  # a clock that has not moved


class CostMeter:
    """The measured rate of one model, and each sender's ratio to it."""

    def __init__(self) -> None:
        self._cost_per_s = 0.0
        self._ratios: OrderedDict[PeerId, float] = OrderedDict()

    @property
    def cost_per_s(self) -> int:
        """How much promised cost a second of the model serves; 0 until something was measured."""
        return int(self._cost_per_s)

    def observe(self, costs: list[tuple[PeerId, int]], duration_s: float) -> list[int]:
        """What each request of one model call cost, in promised units; it took `duration_s`."""
        promised = sum(cost for _, cost in costs)
        duration_s = max(duration_s, SECONDS_MIN)
        ratio = duration_s * (self._cost_per_s or promised / duration_s) / promised
        memory = RATE_MEMORY if self._cost_per_s else 0.0
        self._cost_per_s = memory * self._cost_per_s + (1 - memory) * promised / duration_s
        return [int(cost * self._smoothed(peer, ratio)) for peer, cost in costs]

    def _smoothed(self, peer: PeerId, ratio: float) -> float:
        bounded = min(max(ratio, 1 / RATIO_MAX), RATIO_MAX)
        smoothed = RATIO_MEMORY * self._ratios.get(peer, 1.0) + (1 - RATIO_MEMORY) * bounded
        self._ratios[peer] = smoothed
        self._ratios.move_to_end(peer)
        if len(self._ratios) > SENDERS_MAX:
            self._ratios.popitem(last=False)
        return smoothed if not 1 / BAND <= smoothed <= BAND else 1.0
