"""Machines of a test's own: network namespaces on one bridge, which can be split and joined again.

The rule: nothing outside the namespaces changes, and they go with the block. A split drops packets
without a word, as a broken cable does: no connection is closed, and both sides go on sending.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

BRIDGES = ("left", "right")


def namespaces_work() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    probe = f"agora-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode:
        return False
    bridge = ["ip", "-n", probe, "link", "add", "left", "type", "bridge"]
    works = subprocess.run(bridge, capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return works


class Machines:
    """Namespaces `0` to `count - 1`, each with one address on a common bridge."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._prefix = f"agora-{os.getpid()}"
        self._hub = f"{self._prefix}-hub"

    def address(self, index: int) -> str:
        """Where a program in namespace `index` listens, as a multiaddr."""
        return f"/ip4/10.77.0.{index + 1}/tcp/0"

    def command(self, index: int) -> tuple[str, ...]:
        """What to put before a command that runs in namespace `index`."""
        return ("ip", "netns", "exec", self._name(index))

    def split(self, away: Iterable[int]) -> None:
        """Cut these off from the others; they still reach one another."""
        for index in away:
            self._in_hub("link", "set", f"port{index}", "master", "right")

    def join(self) -> None:
        """Put all on one bridge again."""
        for index in range(self._count):
            self._in_hub("link", "set", f"port{index}", "master", "left")

    def build(self) -> None:
        """Make the namespaces, the bridges and the links."""
        _ip("netns", "add", self._hub)
        for bridge in BRIDGES:
            self._in_hub("link", "add", bridge, "type", "bridge")
            self._in_hub("link", "set", bridge, "up")
        for index in range(self._count):
            name, port = self._name(index), f"port{index}"
            _ip("netns", "add", name)
            peer = ("peer", "name", "eth0", "netns", name)
            self._in_hub("link", "add", port, "type", "veth", *peer)
            self._in_hub("link", "set", port, "up")
            _ip("-n", name, "address", "add", f"10.77.0.{index + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        self.join()

    def remove(self) -> None:
        """Delete the namespaces, and with them everything inside."""
        for name in (*map(self._name, range(self._count)), self._hub):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _name(self, index: int) -> str:
        return f"{self._prefix}-{index}"

    def _in_hub(self, *arguments: str) -> None:
        _ip("-n", self._hub, *arguments)


@contextmanager
def open_machines(count: int) -> Iterator[Machines]:
    """So many machines while the block lasts."""
    machines = Machines(count)
    try:
        machines.build()
        yield machines
    finally:
        machines.remove()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
