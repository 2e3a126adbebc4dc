"""A node's directory: where each file lies, and the lock that makes it one process's.

    lock           held (flock) while a node runs on these keys; holds its process id
    peer.key       network identity: signs votes, weights and receipts
    owner.key      the account: moves stake; may be elsewhere, then owner.pub names it
    genesis.json   the network, once known
    chain.db       final blocks and state
    vote.db        own votes and proposals
    api.json       address and token of the local interface while a node runs
    neuron/        the model's weights and learned gates

The rule: nothing in the directory is read or written by a node without the lock, and a directory
that holds a chain never silently gets a new identity.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node import keystore
from node.errors import KeyCorrupt, KeyLocked, KeyMissing, KeystoreError
from p2p.identity import Identity

NODES_PER_NETWORK_MAX: Final = 64
"""Directories tried for one network in `~/.agora`: more nodes than one machine runs by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The identities of a node; `owner` is None when its secret is elsewhere or sealed."""

    peer: Identity
    owner: Identity | None
    owner_public_key: bytes


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The paths of one node's files; `claim` gives one that no other process uses."""

    path: Path

    @property
    def peer_key(self) -> Path:
        """The network identity."""
        return self.path / "peer.key"

    @property
    def owner_key(self) -> Path:
        """The account's key, when it is on this machine."""
        return self.path / "owner.key"

    @property
    def owner_public_key(self) -> Path:
        """64 hex digits: the account, when its key is elsewhere."""
        return self.path / "owner.pub"

    @property
    def genesis(self) -> Path:
        """The network's genesis, as JSON."""
        return self.path / "genesis.json"

    @property
    def chain(self) -> Path:
        """Final blocks and state."""
        return self.path / "chain.db"

    @property
    def votes(self) -> Path:
        """Own votes and proposals."""
        return self.path / "vote.db"

    @property
    def api(self) -> Path:
        """Where the running node's local interface answers."""
        return self.path / "api.json"

    @property
    def neuron(self) -> Path:
        """The model's own directory."""
        return self.path / "neuron"

    def has_keys(self) -> bool:
        """Whether an identity was made here."""
        return self.peer_key.exists()

    def create_keys(
        self,
        *,
        passphrase: bytes | None,
        peer: Identity | None = None,
        owner: Identity | None = None,
    ) -> None:
        """New peer and owner keys, from the operating system's randomness unless given.

        An owner key that is here already stays. Raises KeyExists, KeyMissing (a chain is here and
        its key is not) or KeystoreError.
        """
        if self.chain.exists() or self.votes.exists():
            raise KeyMissing(
                f"{self.path} holds a chain but no {self.peer_key.name}: restore the key, "
                "or name another --data-dir"
            )
        if not self.owner_key.exists() and not self.owner_public_key.exists():
            owner = owner or Identity.generate()
            keystore.create_key(self.owner_key, "owner", owner, passphrase=passphrase)
        peer = peer or Identity.generate()
        keystore.create_key(self.peer_key, "peer", peer, passphrase=passphrase)

    def load_keys(self, *, passphrase: bytes | None) -> Keys:
        """The identities here. Raises KeystoreError and its kinds."""
        peer = keystore.load_key(self.peer_key, "peer", passphrase=passphrase)
        owner = None
        if self.owner_key.exists() and (
            passphrase is not None or not keystore.is_sealed(self.owner_key, "owner")
        ):
            owner = keystore.load_key(self.owner_key, "owner", passphrase=passphrase)
        return Keys(peer=peer, owner=owner, owner_public_key=self.load_owner_public_key())

    def load_owner_public_key(self) -> bytes:
        """The account, 32 bytes, whether its key is here or elsewhere. Raises KeystoreError."""
        path = self.owner_public_key
        if self.owner_key.exists() or not path.exists():
            return keystore.load_public_key(self.owner_key, "owner")
        try:
            public_key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except (OSError, ValueError):
            public_key = b""
        if len(public_key) != 32:
            raise KeyCorrupt(f"{path} is not a public key of 64 hex digits")
        return public_key


def default_root() -> Path:
    """Where directories lie unless `--data-dir` says otherwise."""
    return Path.home() / ".agora"


@contextlib.contextmanager
def claim(path: Path) -> Iterator[DataDirectory]:
    """Make the directory if needed and hold its lock until exit, or until the process dies.

    Raises KeyLocked when another process has it, KeystoreError when it cannot be made or written.
    """
    descriptor = _lock(path)
    try:
        yield DataDirectory(path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def claim_default(network: str, chain_id: bytes) -> Iterator[DataDirectory]:
    """The first directory of that network in `~/.agora` which no running node uses.

    Named `<network>-<first 8 hex digits of the chain id>`, further ones end in -2, -3, … so that
    several nodes of one network can be started on one machine without naming directories.
    """
    name = f"{network}-{chain_id.hex()[:8]}"
    for index in range(1, NODES_PER_NETWORK_MAX + 1):
        path = default_root() / (name if index == 1 else f"{name}-{index}")
        try:
            descriptor = _lock(path)
        except KeyLocked:
            continue
        try:
            yield DataDirectory(path)
        finally:
            os.close(descriptor)
        return
    raise KeyLocked(f"{NODES_PER_NETWORK_MAX} nodes of {name} run here already; name a --data-dir")


def _lock(path: Path) -> int:
    """An open descriptor that holds the directory's lock; the kernel drops it with the process."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KeystoreError(f"data directory {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise KeyLocked(f"{path} is in use by process {holder}; name another --data-dir") from None
    except OSError as error:
        os.close(descriptor)
        raise KeystoreError(f"data directory {path}: {error.strerror}") from None
    return descriptor
