"""Directed liars: replicas that break one rule each, on purpose and at the worst moment.

Rule upheld: random noise is no adversary; every rule of the engine has a liar of its own here. A
liar runs the real engine to stay in touch, and changes what leaves the node. Liars know no keys but
their own.
"""

from node.simulator.liars.deceiver import Deceiver
from node.simulator.liars.equivocator import Equivocator
from node.simulator.liars.flooder import Flooder
from node.simulator.liars.forger import Forger
from node.simulator.liars.liar import Liar
from node.simulator.liars.miscalculator import Miscalculator
from node.simulator.liars.mute import Mute
from node.simulator.liars.replayer import Replayer
from node.simulator.liars.skipper import Skipper
from node.simulator.liars.splitter import Splitter
from node.simulator.liars.two_faced import TwoFaced
from node.simulator.liars.withholder import Withholder

LIARS: tuple[type[Liar], ...] = (
    Deceiver,
    Equivocator,
    Flooder,
    Forger,
    Miscalculator,
    Mute,
    Replayer,
    Skipper,
    Splitter,
    TwoFaced,
    Withholder,
)
"""One class for each rule that can be attacked."""

__all__ = [
    "LIARS",
    "Deceiver",
    "Equivocator",
    "Flooder",
    "Forger",
    "Liar",
    "Miscalculator",
    "Mute",
    "Replayer",
    "Skipper",
    "Splitter",
    "TwoFaced",
    "Withholder",
]
