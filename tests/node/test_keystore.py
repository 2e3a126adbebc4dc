"""Keys on disk: created once, sealed or open by choice, never overwritten, one process a key."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from node import data_directory, keystore
from node.errors import (
    KeyCorrupt,
    KeyExists,
    KeyLocked,
    KeyMissing,
    KeystoreError,
    PassphraseError,
)
from p2p.identity import Identity

IDENTITY = Identity(bytes(range(32)))
HOLD_CLAIM = """
import sys, pathlib; from node.data_directory import claim
with claim(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def cheap_derivation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keystore, "OPS", 1)
    monkeypatch.setattr(keystore, "MEMORY_BYTES", 8_192)


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_a_key_returns_as_it_was_written(tmp_path: Path, passphrase: bytes | None) -> None:
    path = tmp_path / "peer.key"
    keystore.create_key(path, "peer", IDENTITY, passphrase=passphrase)
    assert keystore.load_key(path, "peer", passphrase=passphrase).seed == IDENTITY.seed
    assert keystore.load_public_key(path, "peer") == IDENTITY.public_key
    assert keystore.is_sealed(path, "peer") is (passphrase is not None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["peer.key"]


def test_a_sealed_file_does_not_hold_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    keystore.create_key(path, "peer", IDENTITY, passphrase=b"x")
    assert IDENTITY.seed.hex() not in path.read_text()


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    path.write_bytes(b"precious")
    with pytest.raises(KeyExists):
        keystore.create_key(path, "peer", IDENTITY, passphrase=None)
    assert path.read_bytes() == b"precious"
    assert [each.name for each in tmp_path.iterdir()] == ["peer.key"]


def test_wrong_or_missing_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    keystore.create_key(path, "peer", IDENTITY, passphrase=b"right")
    with pytest.raises(PassphraseError, match="wrong passphrase"):
        keystore.load_key(path, "peer", passphrase=b"wrong")
    with pytest.raises(PassphraseError, match="--passphrase-file"):
        keystore.load_key(path, "peer")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff garbage",
        b"[1]",
        b"{}",
        b'{"agora_key": 2, "kind": "peer"}',
        b'{"agora_key": 1, "kind": "owner", "cipher": "none"}',
        b'{"agora_key": 1, "kind": "peer", "cipher": "none"}',
        b'{"agora_key": 1, "kind": "peer", "cipher": "none", "seed": "00", "public_key": "00"}',
        b'{"agora_key": 1, "kind": "peer", "cipher": "none", "seed": 5, "public_key": "00"}',
        b" " * 5_000,
    ],
)
def test_a_corrupt_file_is_reported_and_left_alone(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "peer.key"
    path.write_bytes(raw)
    path.chmod(0o600)
    with pytest.raises(KeyCorrupt, match=str(path)):
        keystore.load_key(path, "peer")
    assert path.read_bytes() == raw


def test_a_public_key_of_another_seed_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    keystore.create_key(path, "peer", IDENTITY, passphrase=None)
    content = json.loads(path.read_text())
    content["seed"] = "11" * 32
    path.write_text(json.dumps(content))
    with pytest.raises(KeyCorrupt, match="do not belong together"):
        keystore.load_key(path, "peer")


@pytest.mark.parametrize(
    "change", [{"memory_bytes": 1 << 40}, {"ops": 10**9}, {"salt": "00"}, {"cipher": "rot13"}]
)
def test_hostile_derivation_parameters_are_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    path = tmp_path / "peer.key"
    keystore.create_key(path, "peer", IDENTITY, passphrase=b"x")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(KeyCorrupt):
        keystore.load_key(path, "peer", passphrase=b"x")


def test_an_open_seed_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "peer.key"
    keystore.create_key(path, "peer", IDENTITY, passphrase=None)
    path.chmod(0o644)
    with pytest.raises(KeystoreError, match="chmod 600"):
        keystore.load_key(path, "peer")


def test_missing_key(tmp_path: Path) -> None:
    with pytest.raises(KeyMissing):
        keystore.load_key(tmp_path / "peer.key", "peer")


def test_passphrase_sources(tmp_path: Path) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(b"from file\r\nmore")
    read, write = os.pipe()
    os.write(write, b"from fd\n")
    os.close(write)
    environ = {"AGORA_PASSPHRASE": "from env"}
    assert keystore.read_passphrase(file=file, fd=None, environ=environ) == b"from file"
    assert keystore.read_passphrase(file=None, fd=read, environ=environ) == b"from fd"
    assert keystore.read_passphrase(file=None, fd=None, environ=environ) == b"from env"
    assert keystore.read_passphrase(file=None, fd=None, environ={}) is None
    os.close(read)
    for bad in (tmp_path / "absent", tmp_path):
        with pytest.raises(PassphraseError):
            keystore.read_passphrase(file=bad, fd=None, environ={})
    with pytest.raises(PassphraseError, match="empty"):
        keystore.read_passphrase(file=None, fd=None, environ={"AGORA_PASSPHRASE": ""})


def test_a_directory_is_one_process_s(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD_CLAIM,
            str(tmp_path / "a"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(KeyLocked, match=f"process {holder.pid}"):
            with data_directory.claim(tmp_path / "a"):
                pass
        holder.kill()
    with data_directory.claim(tmp_path / "a") as directory:  # the kernel dropped the lock
        assert directory.path == tmp_path / "a"


def test_default_directories_are_counted_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    chain_id = bytes.fromhex("0123456789abcdef" * 4)
    with data_directory.claim_default("local", chain_id) as first:
        with data_directory.claim_default("local", chain_id) as second:
            assert first.path == tmp_path / ".agora" / "local-01234567"
            assert second.path == tmp_path / ".agora" / "local-01234567-2"
    with data_directory.claim_default("local", chain_id) as again:
        assert again.path == first.path


def test_keys_of_a_directory(tmp_path: Path) -> None:
    with data_directory.claim(tmp_path / "a") as directory:
        assert not directory.has_keys()
        directory.create_keys(passphrase=b"x")
        keys = directory.load_keys(passphrase=b"x")
        assert keys.owner is not None
        assert keys.owner.public_key == keys.owner_public_key
        with pytest.raises(KeyExists):
            directory.create_keys(passphrase=b"x")
        assert directory.load_keys(passphrase=b"x").peer.seed == keys.peer.seed
        directory.owner_key.unlink()  # the owner's secret moves away, its name stays
        directory.owner_public_key.write_text(keys.owner_public_key.hex() + "\n")
        without = directory.load_keys(passphrase=b"x")
        assert without.owner is None
        assert without.owner_public_key == keys.owner_public_key


def test_a_chain_without_its_key_gets_no_new_identity(tmp_path: Path) -> None:
    with data_directory.claim(tmp_path) as directory:
        directory.chain.write_bytes(b"")
        with pytest.raises(KeyMissing, match="restore the key"):
            directory.create_keys(passphrase=None)
        assert not directory.has_keys()


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KeystoreError), data_directory.claim(tmp_path / "file" / "a"):
        pass
