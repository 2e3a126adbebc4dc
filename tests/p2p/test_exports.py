"""The public surface: what is exported, what an import costs, and what is used of py-libp2p."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import p2p

ROOT = Path(__file__).parents[2]
PACKAGES = ["p2p", "p2p.backend", "p2p.gossipsub", "p2p.kademlia", "p2p.memory", "p2p.noise"]

PRIVATE_NAMES_OF_LIBP2P = [
    ("libp2p.network.swarm", "Swarm.set_stream_handler"),
    ("libp2p.network.swarm", "Swarm.add_conn"),
    ("libp2p.transport.manager", "TransportManager.set_swarm"),
    ("libp2p.transport.manager", "TransportManager.set_background_nursery"),
    ("libp2p.stream_muxer.exceptions", "MuxedConnUnavailable"),
    ("libp2p.connection_types", "ConnectionType"),
    ("libp2p.transport.exceptions", "OpenConnectionError"),
]
"""What `p2p.backend.transport` and `.muxed` rely on beyond py-libp2p's documented interfaces."""

ATTRIBUTES_OF_A_SWARM = ["common_stream_handler", "background_nursery"]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_sorted_complete_and_public(name: str) -> None:
    package = importlib.import_module(name)
    exported = list(package.__all__)
    assert exported == sorted(exported, key=_isort_key)
    assert len(exported) == len(set(exported))
    for member in exported:
        assert not member.startswith("_")
        assert hasattr(package, member)


def _isort_key(name: str) -> tuple[int, str]:
    """Constants, classes, functions: the order in which ruff sorts `__all__`."""
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return (kind, name)


def test_public_things_are_documented() -> None:
    for name in p2p.__all__:
        thing = getattr(p2p, name)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name


def test_importing_p2p_imports_nothing_heavy() -> None:
    program = "import json, sys, p2p; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(run.stdout)}
    assert not loaded & {"libp2p", "multiaddr", "torch", "numpy", "scipy", "node", "consensus"}


def test_opening_a_network_needs_no_libp2p() -> None:
    program = """
import sys, trio, p2p
async def main():
    async with p2p.open_network(p2p.Identity(bytes(32)), listen=["/ip4/127.0.0.1/tcp/0"]):
        assert "libp2p" not in sys.modules
trio.run(main)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_what_is_used_of_libp2p_exists() -> None:
    for module_name, path in PRIVATE_NAMES_OF_LIBP2P:
        thing = importlib.import_module(module_name)
        for part in path.split("."):
            thing = getattr(thing, part)
    from libp2p.network.swarm import Swarm

    source = inspect.getsource(Swarm)
    for attribute in ATTRIBUTES_OF_A_SWARM:
        assert f"self.{attribute}" in source


def test_errors_are_one_tree() -> None:
    errors = importlib.import_module("p2p.errors")
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.NetworkError) or error is errors.InvariantViolation
        assert name in (errors.__doc__ or ""), "the tree at the top names every error"


def test_every_limit_has_a_reason() -> None:
    """A comment behind each field of `Limits`."""
    source = (ROOT / "p2p" / "limits.py").read_text()
    body = source.partition("class Limits:")[2].partition("def __post_init__")[0]
    fields = [line for line in body.splitlines() if ": int =" in line or ": float =" in line]
    assert len(fields) > 40
    assert [line for line in fields if "#" not in line] == []


def test_limits_are_checked() -> None:
    for bad in ({"streams_total_max": 0}, {"dial_timeout_s": -1.0}, {"peers_low": 9999}):
        with pytest.raises(ValueError, match=r"positive|peers_low"):
            p2p.Limits(**bad)  # type: ignore[arg-type]
