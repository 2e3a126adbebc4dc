"""A whole local network of real processes on one machine: `python -m node testnet`."""

from node.testnet.launcher import Outcome, Plan, launch
from node.testnet.progress import NetworkProgress, NodeProgress

__all__ = ["NetworkProgress", "NodeProgress", "Outcome", "Plan", "launch"]
