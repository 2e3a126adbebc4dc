"""Configuration: precedence and origins, and nothing that is not understood is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.address import check_announce, check_dialable, check_listen
from node.config import Config, gather_config, parse_shard
from node.errors import AddressError, ConfigError
from p2p.identity import Identity

PEER = Identity(bytes(32)).peer_id
ADDRESS = f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "agora.toml"
    file.write_text('api_port = 1\nlog_level = "info"\nseed = 7\ndata = "text"\n')
    gathered = gather_config(
        flags={"api_port": 3},
        environ={"AGORA_API_PORT": "2", "AGORA_LOG_LEVEL": "debug", "AGORA_PASSPHRASE": "x"},
        config_file=file,
    )
    config = gathered.config
    assert (config.api_port, config.log_level, config.seed) == (3, "debug", 7)
    assert config.data == tmp_path / "text"
    assert gathered.origins["api_port"] == "flag --api-port"
    assert gathered.origins["log_level"] == "environment AGORA_LOG_LEVEL"
    assert gathered.origins["seed"] == f"file {file}"
    assert gathered.origins["train"] == "default"


def test_config_file_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "agora.toml"
    file.write_text(f'bootstrap = ["{ADDRESS}"]\ntrain = false\n')
    config = gather_config(flags={}, environ={"AGORA_CONFIG": str(file)}).config
    assert config.bootstrap == (ADDRESS,)
    assert config.train is False


def test_environment_values() -> None:
    environ = {
        "AGORA_LISTEN": "/ip4/127.0.0.1/tcp/1, /ip6/::1/tcp/0",
        "AGORA_TRAIN": "no",
        "AGORA_DATA_DIR": "~/x",
        "AGORA_TEST_SCALE": "3",
    }
    config = gather_config(flags={}, environ=environ).config
    assert config.listen == ("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/0")
    assert config.train is False
    assert config.data_dir == Path.home() / "x"


@pytest.mark.parametrize(
    ("environ", "text", "reason"),
    [
        ({"AGORA_DATADIR": "x"}, "", "did you mean data_dir"),
        ({"AGORA_TRAIN": "perhaps"}, "", "true or false"),
        ({"AGORA_SEED": "1.5"}, "", "whole number"),
        ({}, "lisen = []", "unknown key lisen"),
        ({}, "api_port = '1'", "whole number"),
        ({}, "api_port = true", "whole number"),
        ({}, "listen = '/ip4/1.2.3.4/tcp/1'", "list of strings"),
        ({}, "api_port = ", "Invalid value"),
        ({}, "api_port = 65536", "0 to 65535"),
        ({}, "network = 'moon'", "local or testnet"),
        ({}, "chain_id = 'ABC'", "64 hex digits"),
        ({}, "checkpoint = '3'", "EPOCH:HASH"),
        ({}, "seed = -1", "seed"),
        ({}, "shard = '5/4'", "I/N"),
        ({}, "threads = -1", "threads"),
    ],
)
def test_what_is_not_understood_is_an_error(
    tmp_path: Path, environ: dict[str, str], text: str, reason: str
) -> None:
    file = tmp_path / "agora.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=reason):
        gather_config(flags={}, environ=environ, config_file=file)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        gather_config(flags={}, environ={}, config_file=tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError):
        gather_config(flags={}, environ={}, config_file=tmp_path / "binary")
    with pytest.raises(ConfigError, match="unknown flag"):
        gather_config(flags={"nonsense": 1}, environ={})


def test_shards() -> None:
    assert parse_shard("1/4") == (0, 4)
    assert parse_shard("4/4") == (3, 4)
    for bad in ("", "1", "0/4", "a/b", "1/4/2", "1/-4", "١/4", "1/999999"):
        with pytest.raises(ConfigError):
            parse_shard(bad)


def test_defaults_of_the_two_networks() -> None:
    assert Config.local().listen == ("/ip4/127.0.0.1/tcp/0",)
    assert Config.testnet(seed=1).listen == ("/ip4/0.0.0.0/tcp/4001",)
    assert Config.local(listen=("/ip4/10.0.0.1/tcp/1",)).listen == ("/ip4/10.0.0.1/tcp/1",)
    assert Config.local().replace(seed=4).seed == 4


@pytest.mark.parametrize(
    "address",
    [
        ADDRESS,
        f"/ip6/::1/tcp/4001/p2p/{PEER}",
        f"/dns4/agora.example/tcp/443/p2p/{PEER}",
        f"{ADDRESS}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_dialable_addresses(address: str) -> None:
    assert check_dialable(address) == PEER


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/",
        "127.0.0.1:4001",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/4001/p2p/",
        "/ip4/127.0.0.1/tcp/4001/p2p/QmNonsense",
        f"{ADDRESS}0",
        f"{ADDRESS}/tcp/1",
        f"/ip4/127.0.0.256/tcp/4001/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/0/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/65536/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/-1/p2p/{PEER}",
        f"/ip4/127.0.0.1/tcp/٤٠/p2p/{PEER}",
        f"/ip4/127.0.0.1/udp/4001/p2p/{PEER}",
        f"/ip6/127.0.0.1/tcp/4001/p2p/{PEER}",
        f"/dns4/a b/tcp/1/p2p/{PEER}",
        f"/unix/a/tcp/1/p2p/{PEER}",
        f"{ADDRESS}/p2p-circuit",
        f"{ADDRESS}/p2p-circuit/p2p/x",
        "/ip4/" + "1" * 5_000,
    ],
)
def test_malformed_bootstrap_addresses(address: str) -> None:
    with pytest.raises(AddressError):
        check_dialable(address)
    with pytest.raises(AddressError):
        Config.local(bootstrap=(address,))


def test_places() -> None:
    check_listen("/ip4/127.0.0.1/tcp/0")
    check_announce("/dns4/agora.example/tcp/443")
    for bad in ("/dns4/localhost/tcp/1", ADDRESS, "/ip4/x/tcp/1"):
        with pytest.raises(AddressError):
            check_listen(bad)
    for bad in ("/ip4/127.0.0.1/tcp/0", ADDRESS):
        with pytest.raises(AddressError):
            check_announce(bad)


def test_bounds_on_lists() -> None:
    with pytest.raises(ConfigError):
        Config.local(listen=("/ip4/127.0.0.1/tcp/0",) * 17)
    with pytest.raises(ConfigError):
        Config.local(bootstrap=(ADDRESS,) * 65)
