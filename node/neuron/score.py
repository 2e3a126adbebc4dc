"""What each peer's answers were worth: eq. 10 with the empirical Fisher and mean ablation.

w_j = mean((grad · g_j (f_j − mean f_j))²): the squared change of the loss, to first order, when
peer j's contribution is replaced by its mean. It comes from gradients that exist anyway and gives
a peer that returns a constant exactly 0, which the raw gate does not.
"""

import math
from collections.abc import Mapping

from torch import Tensor

MEMORY = 0.9  # of the moving average: about the last ten exchanges
SCORE_MIN = 1e-30  # below this a score is rounding noise


def fisher(gradient: Tensor, contribution: Tensor) -> float:
    """Score `contribution` g_j·f_j by the loss `gradient` at G, both `[batch, seq, dim]`."""
    centred = contribution - contribution.mean(dim=(0, 1), keepdim=True)
    change = (gradient * centred).sum(dim=-1)
    return float((change * change).mean())


class Scores:
    """A moving average of scores per peer; a peer that stops answering fades."""

    def __init__(self) -> None:
        self._average: dict[str, float] = {}

    def observe(self, asked: list[str], scores: Mapping[str, float]) -> None:
        """Fold in one exchange: peers in `asked` without a score did not answer and count as 0."""
        for peer in asked:
            score = scores.get(peer, 0.0)
            if not math.isfinite(score):
                score = 0.0
            before = self._average.get(peer)
            self._average[peer] = (
                score if before is None else MEMORY * before + (1 - MEMORY) * score
            )

    def forget(self, peer: str) -> None:
        """Drop a peer that left."""
        self._average.pop(peer, None)

    def shares(self) -> dict[str, float]:
        """Return each peer's share of the total, summing to 1; empty when nothing was learnt."""
        worth = {peer: score for peer, score in self._average.items() if score > SCORE_MIN}
        total = sum(worth.values())
        return {peer: score / total for peer, score in sorted(worth.items())}
