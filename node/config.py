"""What a node is told: one frozen value, gathered from flags, environment, file and defaults.

The rule: `flag > AGORA_<KEY> > --config FILE (TOML) > default`, and what nobody understands is an
error, never ignored: an unknown flag, an unknown `AGORA_*` variable, an unknown key. Every field of
`Config` is at once a flag (`--data-dir`), a variable (`AGORA_DATA_DIR`, lists separated by commas)
and a TOML key (`data_dir`); the command line derives its options from here, so the three cannot
drift apart. `config --show-origin` prints where each value came from.

Secrets are no configuration: a passphrase comes from `AGORA_PASSPHRASE`, a file or a descriptor.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, get_args, get_origin, get_type_hints

from node.errors import ConfigError

ENV_PREFIX: Final = "AGORA_"
ENV_OTHERS: Final = frozenset({"AGORA_PASSPHRASE", "AGORA_CONFIG"})
"""Variables of this program that are no configuration keys."""
ENV_OTHER_PREFIXES: Final = ("AGORA_TEST_", "AGORA_BENCH_")
"""Variables of the test-suite and the benchmarks, which start nodes from their own environment."""

NETWORKS: Final = ("local", "testnet")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LISTEN_ADDRESSES_MAX: Final = 16
BOOTSTRAP_ADDRESSES_MAX: Final = 64
THREADS_MAX: Final = 1_024


def _help(text: str, **extra: Any) -> dict[str, Any]:
    """What the command line shows for a field: help, `metavar`, `choices`."""
    return {"help": text, **extra}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything a node is told. Raises ConfigError or AddressError for a value it cannot use.

    `Config.local()` and `Config.testnet()` are the two starting points; every field can be given
    to either. Paths are expanded; `data_dir` None means `~/.agora/<network>-<chain id 8>/`.
    """

    network: str = field(
        default="local",
        metadata=_help(
            "Kind of network: local (loopback, quick blocks) or testnet.", choices=NETWORKS
        ),
    )
    data_dir: Path | None = field(
        default=None,
        metadata=_help(
            "Directory of keys, chain and votes [~/.agora/<network>-<chain id>].", metavar="DIR"
        ),
    )
    genesis: Path | None = field(
        default=None, metadata=_help("Genesis file of the network to run.", metavar="FILE")
    )
    chain_id: str | None = field(
        default=None,
        metadata=_help("Chain id the network must have (64 hex digits).", metavar="HEX"),
    )
    checkpoint: str | None = field(
        default=None,
        metadata=_help(
            "Trusted boundary block for a node away too long (epoch:hash).", metavar="EPOCH:HASH"
        ),
    )
    full_sync: bool = field(
        default=False,
        metadata=_help("Execute every block when joining, never start from a snapshot."),
    )
    bootstrap: tuple[str, ...] = field(
        default=(), metadata=_help("Peer to join through; repeatable.", metavar="ADDR")
    )
    listen: tuple[str, ...] = field(
        default=(),
        metadata=_help(
            "Address to listen on; repeatable [local: /ip4/127.0.0.1/tcp/0].", metavar="ADDR"
        ),
    )
    announce: tuple[str, ...] = field(
        default=(),
        metadata=_help("Address others should dial instead; repeatable.", metavar="ADDR"),
    )
    api_port: int = field(
        default=0, metadata=_help("Port of the local HTTP interface; 0 takes a free one.")
    )
    data: Path | None = field(
        default=None, metadata=_help("Text to learn from [a text of the stdlib].", metavar="FILE")
    )
    shard: str | None = field(
        default=None,
        metadata=_help(
            "Which part of the data is this node's, as in 1/4 [by its key].", metavar="I/N"
        ),
    )
    model: str = field(
        default="bytes",
        metadata=_help("Model to serve and train.", choices=("bytes", "test", "none")),
    )
    train: bool = field(default=True, metadata=_help("Train and ask other peers."))
    participate: bool = field(
        default=True, metadata=_help("Vote on blocks when the voter set names this node.")
    )
    seed: int | None = field(
        default=None, metadata=_help("Seed of the model and of every choice of this node.")
    )
    threads: int = field(
        default=0, metadata=_help("Threads of the model; 0 leaves the choice to it.")
    )
    passphrase_file: Path | None = field(
        default=None, metadata=_help("File whose first line unlocks the keys.", metavar="FILE")
    )
    passphrase_fd: int | None = field(
        default=None, metadata=_help("Descriptor to read the passphrase from.", metavar="FD")
    )
    fresh_vote_log: bool = field(
        default=False,
        metadata=_help("The vote log is lost: observe until no vote of it can matter."),
    )
    prune: bool = field(default=False, metadata=_help("Keep only recent blocks."))
    log_level: str = field(
        default="warning",
        metadata=_help("Least level to log on standard error.", choices=LOG_LEVELS),
    )

    def __post_init__(self) -> None:
        if not self.listen:
            object.__setattr__(self, "listen", _LISTEN_DEFAULT.get(self.network, ()))
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if isinstance(value, Path):
                object.__setattr__(self, option.name, value.expanduser())
            choices = option.metadata.get("choices")
            if choices and value not in choices:
                raise ConfigError(f"{option.name} is {value!r}; it must be {' or '.join(choices)}")
        _check_addresses(self)
        _check_ranges(self)

    @classmethod
    def local(cls, **options: Any) -> Self:
        """A node of a local network: loopback, quick blocks."""
        return cls(network="local", **options)

    @classmethod
    def testnet(cls, **options: Any) -> Self:
        """A node of a public test network: listens on port 4001 of every IPv4 address."""
        return cls(network="testnet", **options)

    def replace(self, **options: Any) -> Self:
        """This configuration with some values changed, checked again."""
        return dataclasses.replace(self, **options)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredConfig:
    """A configuration and, per key, where its value came from."""

    config: Config
    origins: Mapping[str, str]


_LISTEN_DEFAULT: Final = {
    "local": ("/ip4/127.0.0.1/tcp/0",),
    "testnet": ("/ip4/0.0.0.0/tcp/4001",),
}


def gather_config(
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    config_file: Path | None = None,
) -> GatheredConfig:
    """The configuration of a command.

    `flags` holds only what was given on the command line, by field name. `environ` defaults to the
    process's; `config_file` to `AGORA_CONFIG`. Raises ConfigError or AddressError.
    """
    environ = os.environ if environ is None else environ
    if config_file is None and environ.get("AGORA_CONFIG"):
        config_file = Path(environ["AGORA_CONFIG"])
    values: dict[str, Any] = {}
    origins = {option.name: "default" for option in dataclasses.fields(Config)}
    if config_file is not None:
        for name, value in _read_file(config_file).items():
            values[name], origins[name] = value, f"file {config_file}"
    for name, value in _read_environ(environ).items():
        values[name], origins[name] = value, f"environment {_env_name(name)}"
    for name, value in flags.items():
        _check_known(name, "flag", f"--{name}")
        values[name], origins[name] = value, f"flag --{name.replace('_', '-')}"
    return GatheredConfig(config=Config(**values), origins=origins)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        parsed = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path}: {error}") from None
    for name in parsed:
        _check_known(name, "key", name, where=f" in {path}")
    return {name: _from_toml(name, value, path) for name, value in parsed.items()}


def _read_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    for variable in sorted(environ):
        if not variable.startswith(ENV_PREFIX) or variable in ENV_OTHERS:
            continue
        if variable.startswith(ENV_OTHER_PREFIXES):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        _check_known(name, "variable", variable, where=" in the environment")
        values[name] = _from_text(name, environ[variable], variable)
    return values


def _check_known(name: str, kind: str, shown: str, where: str = "") -> None:
    names = [option.name for option in dataclasses.fields(Config)]
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"unknown {kind} {shown}{where}{hint}")


def _from_text(name: str, text: str, variable: str) -> Any:
    """The value that an environment variable's text means for a field."""
    kind = field_kind(name)
    if kind is bool:
        truth = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in truth:
            raise ConfigError(f"{variable} is {text!r}; it must be true or false")
        return truth[text.lower()]
    if kind is int:
        try:
            return int(text)
        except ValueError:
            raise ConfigError(f"{variable} is {text!r}; it must be a whole number") from None
    if kind is tuple:
        return tuple(each.strip() for each in text.split(",") if each.strip())
    return Path(text) if kind is Path else text


def _from_toml(name: str, value: Any, path: Path) -> Any:
    """The value of a TOML key, of exactly the field's type; relative paths are the file's."""
    kind = field_kind(name)
    if kind is tuple and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return tuple(value)
    if kind is Path and isinstance(value, str):
        return path.parent / Path(value).expanduser()
    if type(value) is kind:
        return value
    wanted = {tuple: "a list of strings", Path: "a string", str: "a string", int: "a whole number"}
    raise ConfigError(f"{name} in {path} must be {wanted.get(kind, 'true or false')}")


def field_kind(name: str) -> type:
    """The plain type of a field: its own, without None, `tuple` for every list."""
    hint = get_type_hints(Config)[name]
    if isinstance(hint, types.UnionType):
        (hint,) = (each for each in get_args(hint) if each is not type(None))
    kind: type = get_origin(hint) or hint
    return kind


def _env_name(name: str) -> str:
    return ENV_PREFIX + name.upper()


def _check_addresses(config: Config) -> None:
    if len(config.listen) > LISTEN_ADDRESSES_MAX or len(config.announce) > LISTEN_ADDRESSES_MAX:
        raise ConfigError(f"at most {LISTEN_ADDRESSES_MAX} addresses to listen on and to announce")
    if len(config.bootstrap) > BOOTSTRAP_ADDRESSES_MAX:
        raise ConfigError(f"at most {BOOTSTRAP_ADDRESSES_MAX} bootstrap addresses")
    # Imported here: the peer id brings PyNaCl, which `--help` does not need.
    from node import address

    for each in config.bootstrap:
        address.check_dialable(each)
    for each in config.listen:
        address.check_listen(each)
    for each in config.announce:
        address.check_announce(each)


def _check_ranges(config: Config) -> None:
    if not 0 <= config.api_port < 1 << 16:
        raise ConfigError(f"api_port is {config.api_port}; it must be 0 to 65535")
    if not 0 <= config.threads <= THREADS_MAX:
        raise ConfigError(f"threads is {config.threads}; it must be 0 to {THREADS_MAX}")
    if config.seed is not None and not 0 <= config.seed < 1 << 63:
        raise ConfigError("seed must be a whole number from 0 to 2^63 - 1")
    if config.chain_id is not None and not _is_hex(config.chain_id, 64):
        raise ConfigError(f"chain_id is {config.chain_id!r}; it must be 64 hex digits")
    if config.checkpoint is not None:
        epoch, _, block_hash = config.checkpoint.partition(":")
        if not (epoch.isascii() and epoch.isdecimal() and _is_hex(block_hash, 64)):
            raise ConfigError(f"checkpoint is {config.checkpoint!r}; it must be EPOCH:HASH")
    if config.shard is not None:
        parse_shard(config.shard)


def parse_shard(text: str) -> tuple[int, int]:
    """(index from 0, count) of a shard written I/N with 1 ≤ I ≤ N. Raises ConfigError."""
    index, _, count = text.partition("/")
    decimal = all(each.isascii() and each.isdecimal() and len(each) < 6 for each in (index, count))
    if decimal and 1 <= int(index) <= int(count):
        return int(index) - 1, int(count)
    raise ConfigError(f"shard is {text!r}; it must be I/N with 1 <= I <= N, as in 1/4")


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(each in "0123456789abcdef" for each in text)
