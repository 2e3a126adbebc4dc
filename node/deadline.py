"""How long to wait for a peer: what it took lately, plus what is unusual for it.

    deadline = median + MAD_FACTOR · MAD + SLACK   of the last durations, within fixed bounds

Rule: a fixed timeout is a guess; a peer is late when it is late for itself. Medians, so that one
stalled answer moves nothing. Peers are forgotten least recently used first.
"""

from collections import OrderedDict, deque
from statistics import median

DURATIONS_MAX = 32  # per peer: a minute of asking, and the median of 32 is cheap
PEERS_MAX = 1_024  # as many peers as a gate knows flat
MAD_FACTOR = 8.0  # 5.4 standard deviations of a normal: a late answer is news
SLACK_S = 0.25  # of scheduling, so that loopback durations of 1 ms do not make 2 ms late
DEADLINE_MIN_S = 0.5
DEADLINE_MAX_S = 30.0
DEADLINE_UNKNOWN_S = 10.0  # for a peer that has not answered yet
LATE_GROWTH = 1.5  # a late answer counts as this much longer than the deadline it missed


class Deadlines:
    """The adaptive deadline of every peer; durations in seconds."""

    def __init__(self, *, unknown_s: float = DEADLINE_UNKNOWN_S) -> None:
        self._unknown_s = unknown_s
        self._durations: OrderedDict[str, deque[float]] = OrderedDict()

    def deadline_s(self, peer: str) -> float:
        """How long to wait for `peer` now."""
        durations = self._durations.get(peer)
        if not durations:
            return self._unknown_s
        middle = median(durations)
        spread = median(abs(duration - middle) for duration in durations)
        deadline_s = middle + MAD_FACTOR * spread + SLACK_S
        return min(max(deadline_s, DEADLINE_MIN_S), DEADLINE_MAX_S)

    def answered(self, peer: str, duration_s: float) -> None:
        """`peer` answered after `duration_s`."""
        durations = self._durations.get(peer)
        if durations is None:
            durations = self._durations[peer] = deque(maxlen=DURATIONS_MAX)
            if len(self._durations) > PEERS_MAX:
                self._durations.popitem(last=False)
        self._durations.move_to_end(peer)
        durations.append(duration_s)

    def late(self, peer: str, waited_s: float) -> None:
        """`peer` did not answer within `waited_s`: the next one is given more time."""
        self.answered(peer, min(waited_s * LATE_GROWTH, DEADLINE_MAX_S))
