"""The command line: exit codes, one clear line, nothing ignored; verbs that read and sign."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus.entries import entries_of
from consensus.genesis import encode_genesis, genesis_state
from consensus.transaction import SetWeights, Transfer, decode_transaction
from node import cli, errors
from node.config import Config
from node.data_directory import DataDirectory, claim
from node.genesis_file import Allocation, check_genesis, load_genesis, local_genesis, save_genesis
from node.local_api import LocalApi
from node.store import EpochChange, StoredBlock, open_chain_store
from p2p.identity import Identity, PeerId

PEER = Identity(bytes(32)).peer_id


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for variable in [name for name in os.environ if name.startswith("AGORA_")]:
        monkeypatch.delenv(variable)
    return home


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        code = cli.main([str(each) for each in arguments])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture
def node_dir(tmp_path: Path) -> Path:
    """A directory with keys, a genesis of three founders, and the chain at height 0."""
    path = tmp_path / "node"
    with claim(path) as directory:
        directory.create_keys(passphrase=None)
        keys = directory.load_keys(passphrase=None)
        founders = [Allocation(owner=keys.owner_public_key, peer=keys.peer.public_key)]
        for index in (1, 2):
            identity = Identity(bytes([index]) * 32)
            founders.append(Allocation(owner=identity.public_key, peer=identity.public_key))
        genesis = local_genesis(founders, time_ms=1)
        save_genesis(directory.genesis, genesis)
        state = genesis_state(genesis)
        block = StoredBlock(
            height=0,
            hash=genesis.chain_id,
            epoch=0,
            view=0,
            state_root=state.root,
            header=b"",
            body=encode_genesis(genesis),
        )
        open_chain_store(
            directory.chain,
            chain_id=genesis.chain_id,
            genesis=block,
            leaves=dict(entries_of(state)),
            epoch=EpochChange(epoch=0, voter_set=state.voters.encode()),
        ).close()
    return path


class FakeNode(http.server.BaseHTTPRequestHandler):
    """A node's interface: remembers what was submitted, refuses what it is told to."""

    submitted: list[bytes]
    refusal: str | None

    def do_GET(self) -> None:
        views = {
            "/status": {
                "height": 7,
                "peers": 0,
                "addresses": [],
                "network_height": 70,
                "clock_skew_ms": 5_000,
                "halted": "why",
                "loss": None,
                "ok": True,
                "exchanges": {"a": 1},
            },
            "/peers": [{"peer_id": "p", "height": 3}, {"peer_id": "q", "loss": 1.5}],
        }
        self._answer(200, views[self.path]) if self.path in views else self._answer(404, {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer secret":
            self._answer(401, {"error": "the token is needed"})
        elif type(self).refusal is not None:
            self._answer(400, {"error": type(self).refusal})
        else:
            type(self).submitted.append(bytes.fromhex(body.decode()))
            self._answer(200, {})

    def log_message(self, *_: object) -> None: ...

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def fake_node(node_dir: Path) -> Iterator[type[FakeNode]]:
    handler = type("Handler", (FakeNode,), {"submitted": [], "refusal": None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}"
        record = {"address": address, "token": "secret", "pid": os.getpid()}
        DataDirectory(node_dir).api.write_text(json.dumps(record))
        yield handler
        server.shutdown()
        thread.join()


def test_every_verb_explains_itself(run: Any) -> None:
    overview = run("--help")
    assert overview.code == 0
    for verb in cli.VERBS:
        assert verb in overview.out
        if verb == "simulate":
            continue  # a part of its own, with tests of its own
        told = run(verb, "--help")
        assert told.code == 0, verb
        assert "--help" in told.out


def test_help_is_quick_to_import() -> None:
    """`--help` loads neither trio, nor torch, nor the network, nor any verb."""
    code = (
        "import sys; from node import cli; cli.main(['--help']); "
        "print([m for m in ('trio','torch','numpy','p2p','consensus','node.command.run') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_field_of_the_configuration_is_an_option(run: Any) -> None:
    told = run("run", "--help").out
    for name in Config.__dataclass_fields__:
        assert f"--{name.replace('_', '-')}" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--frobnicate"], "No such option"),
        (["run", "--frobnicate"], "No such option"),
        (["frobnicate"], "No such command"),
        (["run", "surplus"], "unexpected extra argument"),
        (["--bootstrap", "localhost:4001"], "is not a TCP multiaddr"),
        (["--listen", "/ip4/1.2.3.4/udp/1"], "is not a TCP multiaddr"),
        (["--api-port", "x"], "is not a valid integer"),
        (["--api-port", "70000"], "0 to 65535"),
        (["--network", "moon"], "is not one of"),
        (["--config", "/nonexistent.toml"], "No such file"),
        (["testnet", "--nodes", "0"], "must be 1 to 64"),
        (["testnet", "--data-dir", "/"], "not empty"),
        (["status", "--data-dir", "/nonexistent"], "is not a directory"),
        (["status"], "no node in"),
        (["genesis"], "give --from-final"),
        (["genesis", "new", "--out", "x"], "at least one --founder"),
        (["genesis", "new", "--out", "x", "--founder-keys", "a:b"], "OWNER:PEER"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Any, arguments: list[str], said: str) -> None:
    ran = run(*arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def test_an_unknown_variable_is_an_error(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGORA_LISTEM", "x")
    ran = run("config")
    assert ran.code == 2
    assert "AGORA_LISTEM" in ran.err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.StoreFull("no\nspace"), 1, "agora: no space\n"),
        (ExceptionGroup("g", [ExceptionGroup("g", [errors.AddressError("x")])]), 2, "agora: x\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("g", [KeyboardInterrupt(), ValueError()]), 130, ""),
        (SystemExit(3), 3, ""),
    ],
)
def test_how_commands_end(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli.root, "main", fail)
    ran = run("config")
    assert (ran.code, ran.err) == (code, line)


def test_a_defect_shows_where(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise errors.InvariantViolation("impossible")

    monkeypatch.setattr(cli.root, "main", fail)
    ran = run("config")
    assert ran.code == 1
    assert "Traceback" in ran.err
    assert "defect" in ran.err


def test_config_with_origins(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.toml"
    file.write_text("seed = 5\n")
    monkeypatch.setenv("AGORA_THREADS", "2")
    arguments = ("config", "--config", file, "--no-train", "--listen", "/ip4/127.0.0.1/tcp/1")
    values = run(*arguments, "--json").json
    assert (values["seed"], values["threads"], values["train"]) == (5, 2, False)
    assert values["listen"] == ["/ip4/127.0.0.1/tcp/1"]
    origins = run(*arguments, "--json", "--show-origin").json
    assert origins["seed"] == {"value": 5, "origin": f"file {file}"}
    assert origins["train"]["origin"] == "flag --train"
    text = run(*arguments, "--show-origin").out
    assert re.search(r"threads +: ?= 2|threads += 2 +# environment AGORA_THREADS", text)


def test_keys(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    made = run("keys", "create", "--data-dir", path, "--no-passphrase", "--json").json
    assert PeerId(made["peer_id"]).public_key.hex() == made["peer_key"]
    assert made["sealed"] is False
    assert run("keys", "show", "--data-dir", path, "--json").json == made
    again = run("keys", "create", "--data-dir", path, "--no-passphrase")
    assert again.code == 1
    assert "never overwritten" in again.err
    assert "no passphrase" not in run("keys", "show", "--data-dir", path).out


def test_sealed_and_watch_only_keys(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.keystore.OPS", 1)
    monkeypatch.setattr("node.keystore.MEMORY_BYTES", 8_192)
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    owner = Identity.generate().public_key.hex()
    made = run(
        "keys", "create", "--data-dir", tmp_path / "a", "--passphrase-file", secret,
        "--owner", owner, "--json",
    ).json  # fmt: skip
    assert made["sealed"] is True
    assert made["account"] == owner
    assert made["owner_key"] == "elsewhere"
    bad = run("keys", "create", "--data-dir", tmp_path / "b", "--owner", "xyz", "--no-passphrase")
    assert bad.code == 2
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("keys", "create", "--data-dir", tmp_path / "c").code == 1


def test_metagraph_and_explain(run: Any, node_dir: Path) -> None:
    facts = run("metagraph", "--data-dir", node_dir, "--json").json
    assert facts["height"] == 0
    assert [peer["uid"] for peer in facts["peers"]] == [0, 1, 2]
    assert sum(facts["peers"][0]["weights"].values()) == pytest.approx(1)
    name = facts["peers"][1]["peer_id"]
    assert name in run("metagraph", "--data-dir", node_dir).out
    for named in (1, name, facts["peers"][1]["account"]):
        told = run("explain", "--peer", named, "--data-dir", node_dir, "--json").json
        assert told["peer"]["uid"] == 1
        assert told["rank"] == pytest.approx(1 / 3, abs=1e-4)
        assert sum(giver["rank"] for giver in told["from"]) == pytest.approx(told["rank"])
    assert "incentive = rank x trust" in run("explain", "--peer", 0, "--data-dir", node_dir).out
    for unknown in (9, "12D3KooW", "ab" * 32, "zz" * 32):
        assert run("explain", "--peer", unknown, "--data-dir", node_dir).code == 2


def test_the_only_directory_is_found(run: Any, node_dir: Path, own_home: Path) -> None:
    root = own_home / ".agora"
    root.mkdir()
    node_dir.rename(root / "local-1")
    assert run("metagraph", "--json").json["height"] == 0
    with claim(root / "local-2"):
        pass
    ran = run("metagraph")
    assert ran.code == 2
    assert "several nodes" in ran.err


def test_a_running_node_is_asked(run: Any, node_dir: Path, fake_node: type[FakeNode]) -> None:
    assert run("status", "--data-dir", node_dir, "--json").json["height"] == 7
    assert "height" in run("status", "--data-dir", node_dir).out
    assert len(run("peers", "--data-dir", node_dir, "--json").json) == 2
    assert "q" in run("peers", "--data-dir", node_dir).out
    told = run("doctor", "--data-dir", node_dir)
    assert told.code == 1
    for advice in ("no connection", "63 blocks behind", "set the system clock", "halted: why"):
        assert advice in told.out


def test_no_node_runs(run: Any, node_dir: Path) -> None:
    for verb in ("status", "peers"):
        ran = run(verb, "--data-dir", node_dir)
        assert ran.code == 1
        assert "no node runs" in ran.err
    DataDirectory(node_dir).api.write_text(
        '{"address": "http://127.0.0.1:1", "token": "", "pid": 1}'
    )
    assert "no node answers" in run("status", "--data-dir", node_dir).err
    DataDirectory(node_dir).api.write_text("{")
    assert "cannot be read" in run("status", "--data-dir", node_dir).err


def test_the_token_goes_to_this_machine_only() -> None:
    for address in ("http://192.0.2.1:80", "https://127.0.0.1:1", "ftp://x"):
        with pytest.raises(errors.ApiError, match="not an address on this machine"):
            LocalApi(address, "secret").get("/status")


def test_transfers(run: Any, node_dir: Path, fake_node: type[FakeNode]) -> None:
    arguments = ("transfer", "--to", 1, "--amount", "1.5", "--data-dir", node_dir)
    sent = run(*arguments, "--json").json
    transaction = decode_transaction(fake_node.submitted[0])
    assert transaction.hash.hex() == sent["hash"]
    assert isinstance(transaction.content, Transfer)
    assert transaction.content.amount == 1_500_000_000
    fake_node.refusal = "nonce-used"
    refused = run(*arguments)
    assert (refused.code, refused.err) == (1, "agora: nonce-used\n")
    for amount in ("0", "-1", "x", "0.0000000001", "99999999999999", "nan"):
        assert run("transfer", "--to", 1, "--amount", amount, "--data-dir", node_dir).code == 2


def test_signing_elsewhere(run: Any, node_dir: Path, fake_node: type[FakeNode]) -> None:
    payload = run(
        "transfer", "--to", 2, "--amount", 1, "--unsigned", "--fee", "0.5", "--data-dir", node_dir
    ).out.strip()
    signed = run("sign", payload, "--data-dir", node_dir)
    assert "signing for account" in signed.err
    assert run("submit", signed.out.strip(), "--data-dir", node_dir).code == 0
    assert decode_transaction(fake_node.submitted[0]).fee == 500_000_000
    for nonsense in ("zz", "00", payload[:-2]):
        assert run("sign", nonsense, "--data-dir", node_dir).code == 2
    assert run("submit", "00", "--data-dir", node_dir).code == 2


def test_own_weights(run: Any, node_dir: Path, fake_node: type[FakeNode]) -> None:
    facts = run("weights", "--data-dir", node_dir, "--json").json
    assert facts["affordable"] is True
    assert len(facts["weights"]) == 2
    assert "can be published now" in run("weights", "--data-dir", node_dir).out
    assert run("weights", "--set", "1=3", "--set", "2=1", "--data-dir", node_dir).code == 0
    content = decode_transaction(fake_node.submitted[0]).content
    assert isinstance(content, SetWeights)
    assert content.row.entries == ((1, 49_152), (2, 16_384))
    for wrong in ("1", "1=", "=1", "1=-1", "7=1", "1=0"):
        assert run("weights", "--set", wrong, "--data-dir", node_dir).code == 2


def test_a_member_need_not_subscribe(run: Any, node_dir: Path) -> None:
    ran = run("subscribe", "--data-dir", node_dir)
    assert ran.code == 1
    assert "is in the table already" in ran.err


def test_replay_and_doctor_of_a_new_chain(run: Any, node_dir: Path) -> None:
    assert run("replay", "--data-dir", node_dir, "--json").json["height"] == 0
    findings = {
        each["name"]: each
        for each in json.loads(run("doctor", "--data-dir", node_dir, "--json").out)
    }
    assert findings["chain"]["ok"]
    assert not findings["votes"]["ok"]  # a chain without its vote log
    assert run("replay", "--data-dir", node_dir.parent).code == 1


def test_genesis_files(run: Any, node_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "g.json"
    keys = f"{'11' * 32}:{'22' * 32}"
    made = run(
        "genesis", "new", "--out", out, "--founder", node_dir, "--founder-keys", keys,
        "--network", "ours", "--json",
    ).json  # fmt: skip
    assert made["accounts"] == made["voters"] == 2
    assert run("genesis", "check", out, "--json").json == made
    again = run("genesis", "new", "--out", out, "--founder", node_dir)
    assert again.code == 1
    assert "never overwritten" in again.err
    out.write_text(out.read_text().replace('"ours"', '"OURS"'))
    assert run("genesis", "check", out).code == 1


def test_a_halted_chain_is_continued(run: Any, node_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "next.json"
    made = run("genesis", "--from-final", "--out", out, "--data-dir", node_dir, "--json").json
    before, after = load_genesis(DataDirectory(node_dir).genesis), load_genesis(out)
    assert made["prev_chain_id"] == before.chain_id.hex()
    assert after.chain_id != before.chain_id
    assert after.accounts == before.accounts
    assert genesis_state(after).voters.voters == genesis_state(before).voters.voters


def test_a_genesis_is_not_replaced(tmp_path: Path) -> None:
    one, two = (
        local_genesis([Allocation(owner=bytes([n]) * 32, peer=bytes([n]) * 32)], time_ms=1)
        for n in (1, 2)
    )
    path = tmp_path / "genesis.json"
    save_genesis(path, one)
    save_genesis(path, one)
    with pytest.raises(errors.GenesisError, match="name another --data-dir"):
        save_genesis(path, two)
    assert check_genesis(path, one.chain_id) == one
    with pytest.raises(errors.GenesisError, match="No such file"):
        load_genesis(tmp_path / "absent")
    with pytest.raises(errors.GenesisError):
        local_genesis([])
