"""The exact fluid server (GPS) as an oracle: rationals, for clarity and not for speed."""

from collections import defaultdict
from fractions import Fraction


class FluidServer:
    """Serves every backlogged flow at once, in proportion to its weight."""

    def __init__(self, weights: dict[str, int]) -> None:
        self._weights = weights
        self._owed: dict[str, Fraction] = defaultdict(Fraction)
        self.served: dict[str, Fraction] = defaultdict(Fraction)

    def arrive(self, sender: str, cost: int) -> None:
        self._owed[sender] += cost

    def work(self, amount: int) -> None:
        """Divide `amount` of service among the backlogged; what nobody wants is lost."""
        left = Fraction(amount)
        while left > 0:
            backlogged = [sender for sender, owed in self._owed.items() if owed > 0]
            if not backlogged:
                return
            total = sum(self._weights[sender] for sender in backlogged)
            # Until the first of them runs dry, or the amount is spent.
            step = min(left, *(self._owed[s] * total / self._weights[s] for s in backlogged))
            for sender in backlogged:
                part = step * self._weights[sender] / total
                self._owed[sender] -= part
                self.served[sender] += part
            left -= step
