"""Keys on disk: one JSON file a key, created once, mode 0600, never overwritten.

The rule: a key file is either made by this module in one step or left exactly as it is. Creation
writes a temporary file and *links* it to its name, which fails when the name exists; whatever
cannot be read is reported and kept. A file is sealed with a passphrase (Argon2id for the key,
XSalsa20-Poly1305 for the box, both libsodium's) or holds the seed openly, which only a stated
choice does: local networks, whose stake is worth nothing, and `--no-passphrase`.

    {"agora_key": 1, "kind": "peer", "public_key": hex, "cipher": "none", "seed": hex}
    {"agora_key": 1, …, "cipher": "argon2id-xsalsa20poly1305",
     "ops": n, "memory_bytes": n, "salt": hex, "box": hex}

The public key stands outside the seal: a watch-only node, and a node whose owner key is elsewhere,
name their account without a secret.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import nacl.exceptions
import nacl.pwhash.argon2id
import nacl.secret

from node.errors import KeyCorrupt, KeyExists, KeyMissing, KeystoreError, PassphraseError
from p2p.identity import SEED_BYTES, Identity

KeyKind: TypeAlias = Literal["peer", "owner"]

FORMAT_VERSION: Final = 1
CIPHER: Final = "argon2id-xsalsa20poly1305"
OPS: Final = 3
MEMORY_BYTES: Final = 64 << 20
"""About 0.2 s and 64 MiB a guess: noticed once at a start, and by whoever tries a billion."""
OPS_MAX: Final = 16
MEMORY_BYTES_MAX: Final = 1 << 30
"""A file may not ask its reader for more: it could come from anywhere."""
KEY_FILE_BYTES_MAX: Final = 4_096
PASSPHRASE_BYTES_MAX: Final = 1_024
PASSPHRASE_VARIABLE: Final = "AGORA_PASSPHRASE"


def create_key(path: Path, kind: KeyKind, identity: Identity, *, passphrase: bytes | None) -> None:
    """Write a new key file; `passphrase` None leaves the seed open, by the caller's choice.

    Raises KeyExists when the name is taken and KeystoreError when it cannot be written; in both
    cases nothing on disk has changed.
    """
    content: dict[str, Any] = {
        "agora_key": FORMAT_VERSION,
        "kind": kind,
        "public_key": identity.public_key.hex(),
    }
    content |= (
        {"cipher": "none", "seed": identity.seed.hex()}
        if passphrase is None
        else _seal(identity.seed, passphrase)
    )
    write_once(path, json.dumps(content, indent=1).encode() + b"\n")


def load_key(path: Path, kind: KeyKind, *, passphrase: bytes | None = None) -> Identity:
    """The key pair of a file.

    Raises KeyMissing, KeyCorrupt (also when seed and public key do not belong together),
    PassphraseError (sealed and no or a wrong passphrase) or KeystoreError (cannot be read, or an
    open seed that others may read).
    """
    content = _read(path, kind)
    if content.get("cipher") == "none":
        _check_private(path)
        seed = _hex(content, "seed", path)
    elif passphrase is None:
        raise PassphraseError(
            f"{path} is sealed: give --passphrase-file, --passphrase-fd or {PASSPHRASE_VARIABLE}"
        )
    else:
        seed = _unseal(content, passphrase, path)
    if len(seed) != SEED_BYTES:
        raise KeyCorrupt(f"{path}: the seed has {len(seed)} bytes, not {SEED_BYTES}")
    identity = Identity(seed)
    if identity.public_key != _hex(content, "public_key", path):
        raise KeyCorrupt(f"{path}: seed and public key do not belong together")
    return identity


def load_public_key(path: Path, kind: KeyKind) -> bytes:
    """The public key of a file, 32 bytes, without its secret. Raises KeyMissing, KeyCorrupt."""
    public_key = _hex(_read(path, kind), "public_key", path)
    if len(public_key) != 32:
        raise KeyCorrupt(f"{path}: the public key has {len(public_key)} bytes, not 32")
    return public_key


def is_sealed(path: Path, kind: KeyKind) -> bool:
    """Whether the file needs a passphrase. Raises KeyMissing, KeyCorrupt."""
    return _read(path, kind).get("cipher") != "none"


def read_passphrase(
    *, file: Path | None, fd: int | None, environ: Mapping[str, str]
) -> bytes | None:
    """The passphrase given by file, descriptor or environment, in this order; None when by none.

    One line end is dropped. Raises PassphraseError when the named source cannot be read or is
    empty.
    """
    if file is not None:
        try:
            with file.open("rb") as source:
                text = source.read(PASSPHRASE_BYTES_MAX + 2)
        except OSError as error:
            raise PassphraseError(f"passphrase file {file}: {error.strerror}") from None
    elif fd is not None:
        try:
            with os.fdopen(fd, "rb", closefd=False) as source:
                text = source.read(PASSPHRASE_BYTES_MAX + 2)
        except OSError as error:
            raise PassphraseError(f"passphrase descriptor {fd}: {error.strerror}") from None
    elif PASSPHRASE_VARIABLE in environ:
        text = environ[PASSPHRASE_VARIABLE].encode()
    else:
        return None
    passphrase = text.split(b"\n", 1)[0].removesuffix(b"\r")
    if not passphrase:
        raise PassphraseError("the passphrase is empty")
    if len(passphrase) > PASSPHRASE_BYTES_MAX:
        raise PassphraseError(f"the passphrase is longer than {PASSPHRASE_BYTES_MAX} bytes")
    return passphrase


def write_once(path: Path, content: bytes) -> None:
    """Create `path` (mode 0600) with `content` durably, or raise KeyExists and change nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError:
        raise KeyExists(f"{path} exists and is never overwritten") from None
    except OSError as error:
        raise KeystoreError(f"cannot create {path}: {error.strerror}") from None


def _seal(seed: bytes, passphrase: bytes) -> dict[str, Any]:
    salt = os.urandom(nacl.pwhash.argon2id.SALTBYTES)
    key = _derive(passphrase, salt, OPS, MEMORY_BYTES)
    return {
        "cipher": CIPHER,
        "ops": OPS,
        "memory_bytes": MEMORY_BYTES,
        "salt": salt.hex(),
        "box": bytes(nacl.secret.SecretBox(key).encrypt(seed)).hex(),
    }


def _unseal(content: Mapping[str, Any], passphrase: bytes, path: Path) -> bytes:
    if content.get("cipher") != CIPHER:
        raise KeyCorrupt(f"{path}: unknown cipher {content.get('cipher')!r}")
    salt = _hex(content, "salt", path)
    ops, memory_bytes = content.get("ops"), content.get("memory_bytes")
    if len(salt) != nacl.pwhash.argon2id.SALTBYTES or type(ops) is not int:
        raise KeyCorrupt(f"{path}: unusable key derivation")
    if type(memory_bytes) is not int or not 8_192 <= memory_bytes <= MEMORY_BYTES_MAX:
        raise KeyCorrupt(f"{path}: key derivation asks for an unreasonable amount of memory")
    if not 1 <= ops <= OPS_MAX:
        raise KeyCorrupt(f"{path}: key derivation asks for an unreasonable number of passes")
    key = _derive(passphrase, salt, ops, memory_bytes)
    try:
        return nacl.secret.SecretBox(key).decrypt(_hex(content, "box", path))
    except (nacl.exceptions.CryptoError, ValueError):
        raise PassphraseError(f"{path}: wrong passphrase, or the file was altered") from None


def _derive(passphrase: bytes, salt: bytes, ops: int, memory_bytes: int) -> bytes:
    size = nacl.secret.SecretBox.KEY_SIZE
    key: bytes = nacl.pwhash.argon2id.kdf(size, passphrase, salt, ops, memory_bytes)
    return key


def _read(path: Path, kind: KeyKind) -> dict[str, Any]:
    """The parsed file, with its version and kind checked."""
    try:
        with path.open("rb") as file:
            raw = file.read(KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise KeyMissing(f"no {kind} key at {path}") from None
    except OSError as error:
        raise KeystoreError(f"cannot read {path}: {error.strerror}") from None
    try:
        content = json.loads(raw) if len(raw) <= KEY_FILE_BYTES_MAX else None
    except ValueError:
        content = None
    if not isinstance(content, dict) or "agora_key" not in content:
        raise KeyCorrupt(f"{path} is not a key file; it was left as it is")
    if content["agora_key"] != FORMAT_VERSION:
        raise KeyCorrupt(f"{path} has key format {content['agora_key']!r}, not {FORMAT_VERSION}")
    if content.get("kind") != kind:
        raise KeyCorrupt(f"{path} holds a {content.get('kind')!r} key where a {kind} key belongs")
    return content


def _hex(content: Mapping[str, Any], name: str, path: Path) -> bytes:
    try:
        return bytes.fromhex(content[name])
    except (KeyError, TypeError, ValueError):
        raise KeyCorrupt(f"{path}: {name!r} is not hex; the file was left as it is") from None


def _check_private(path: Path) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise KeystoreError(f"{path} can be read by others: run chmod 600 {path}")


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
