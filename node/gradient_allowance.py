"""How much of others' gradients a model takes in an interval: from each sender, and from all.

    room = bound / 2 − level;   level drains at bound / 2 per interval

Rule: in any stretch of INTERVAL_S no more than `bound` enters, half of it at once and half as the
level drains. The unit is one gradient in full: a model clips each to a norm of its own and scales
it by the share that it is given, so that the sum of shares times that norm bounds how far others
move it. What a sender has left is counted before its share scales it: sending more often does not
make up for a small share. Time is an argument.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from consensus.params import ACCOUNTS_LIMIT
from p2p.identity import PeerId

INTERVAL_S: Final = 10.0
"""Some forty rounds of a learner, so that a burst passes; soon over for who has used it up."""
SENDER_MAX: Final = 80.0
"""Gradients in full per interval from one: half of it is what a learner sends that asks us in every
round, four a second."""
ALL_MAX: Final = 2 * SENDER_MAX
"""From all together: one that takes all it may leaves as much to others. A learner's own steps in
an interval are about 200, each of up to ten times a clipped gradient's norm."""
SENDERS_MAX: Final = ACCOUNTS_LIMIT
"""As many as can have weight. Full: a newcomer's gradients are not applied until one has drained,
so that nobody gets rid of what it has used by bringing others."""


@dataclass(slots=True)
class _Level:
    """What has been taken and has not drained yet, at the time when somebody looked last."""

    used: float = 0.0
    at_s: float = 0.0

    def room(self, bound: float, now_s: float) -> float:
        """Drain until now; what is left of half of `bound`."""
        drained = (now_s - self.at_s) * bound / (2 * INTERVAL_S)
        self.used, self.at_s = max(0.0, self.used - drained), now_s
        return max(0.0, bound / 2 - self.used)


class GradientAllowance:
    """Of one model. Not for several threads at once."""

    def __init__(self) -> None:
        self._all = _Level()
        self._senders: OrderedDict[PeerId, _Level] = OrderedDict()  # not seen for longest first

    def __len__(self) -> int:
        """Senders that are remembered."""
        return len(self._senders)

    def take(self, sender: PeerId, share: float, *, now_s: float) -> float:
        """The part of a gradient, from 0 to `share`, that may be applied now; it is then used up.

        `share` is the sender's part of the demand, from 0 to 1; `now_s` never goes back.
        """
        own = self._level_of(sender, now_s)
        if own is None or share <= 0:
            return 0.0
        part = min(1.0, own.room(SENDER_MAX, now_s))
        granted = min(part * share, self._all.room(ALL_MAX, now_s))
        own.used += granted / share
        self._all.used += granted
        return granted

    def _level_of(self, sender: PeerId, now_s: float) -> _Level | None:
        """The sender's level, None for a newcomer when all places are taken."""
        while self._senders:
            oldest, level = next(iter(self._senders.items()))
            if now_s - level.at_s < INTERVAL_S:
                break
            del self._senders[oldest]  # drained: a new one says the same
        if sender not in self._senders:
            if len(self._senders) == SENDERS_MAX:
                return None
            self._senders[sender] = _Level(at_s=now_s)
        self._senders.move_to_end(sender)
        return self._senders[sender]
