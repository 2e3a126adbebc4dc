"""`transfer`, `weights`, `subscribe`, `sign`, `submit`: verbs that ask the ledger for something.

The state they build on is read from disk, the signature is made here, and the running node is
handed the finished transaction; its key never leaves this process. With `--unsigned` the bytes to
sign are printed instead: carry them to the machine of the owner key, `sign` them there, and
`submit` what it prints.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final

import click

from consensus.crypto import Ed25519Signer
from consensus.errors import DecodeError
from consensus.params import WEIGHT_ONE
from consensus.settlement import pending_of
from consensus.transaction import (
    Content,
    Role,
    SetWeights,
    Subscribe,
    Transaction,
    Transfer,
    decode_transaction,
    named_peer_key,
)
from consensus.types import TOKEN, AccountId, Amount, PeerKey, Uid
from consensus.wallet import Draft, draft_of
from consensus.weights import rounded_row
from consensus.work import find_work
from node.chain_view import PENDING_ONE, ChainView, read_chain, tokens
from node.command.directory import find_directory
from node.command.option import data_dir_option, json_option, print_json
from node.data_directory import DataDirectory, Keys
from node.errors import KeyMissing, NodeError, PassphraseError, UsageError
from node.genesis_file import own_announcement
from node.keystore import is_sealed, load_key, read_passphrase
from node.local_api import open_local_api

WAIT_S: Final = 60.0
"""A transaction that pays the fee is in the next block or two; a minute means it never will be."""
POLL_S: Final = 0.2
WORK_TRIES: Final = 1_000_000
"""Half a second of search between looks at whether the ancestor is still usable."""
WORK_S: Final = 600.0
ANCESTOR_DEPTH: Final = 4
"""Deep enough to be final at every node, young enough to leave a minute for the way."""
SIGNATURE: Final = bytes(64)


def _signing_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        json_option,
        click.option("--wait", is_flag=True, help="Wait until it is in a final block."),
        click.option("--unsigned", is_flag=True, help="Print the bytes to sign, send nothing."),
        click.option("--fee", metavar="TOKENS", help="Pay more than the smallest fee."),
        click.option("--passphrase-fd", type=int, metavar="FD"),
        click.option("--passphrase-file", type=click.Path(path_type=Path), metavar="FILE"),
        data_dir_option,
    ):
        command = option(command)
    return command


@click.command()
@click.option("--to", required=True, metavar="PEER", help="A peer id, account or uid.")
@click.option("--amount", required=True, metavar="TOKENS", help="As in 12.5.")
@_signing_options
def transfer(to: str, amount: str, **options: Any) -> None:
    """Move stake to another account (owner key)."""
    request = _Request(**options)
    recipient = request.view.state.accounts[request.view.uid_of(to)].owner
    request.send(Transfer(recipient=recipient, amount=_amount(amount, "--amount")))


@click.command()
@click.option(
    "--set",
    "scores",
    multiple=True,
    metavar="PEER=SCORE",
    help="Publish this row, in proportion to whole-number scores; repeatable.",
)
@_signing_options
def weights(scores: tuple[str, ...], **options: Any) -> None:
    """Show this node's row, or publish another one (peer key).

    A running node that trains publishes what it measured and will replace this row again.
    """
    request = _Request(**options)
    if not scores:
        request.show_row()
        return
    if request.view.genesis.parameters.commit_reveal:
        raise UsageError("this network hides weights: a running node commits and reveals its own")
    row: dict[Uid, int] = {}
    for text in scores:
        name, _, score = text.rpartition("=")
        if not (score.isascii() and score.isdecimal() and name):
            raise UsageError(f"--set {text}: expected PEER=WHOLE_NUMBER")
        row[request.view.uid_of(name)] = int(score)
    try:
        request.send(SetWeights(row=rounded_row(row)))
    except ValueError as error:
        raise UsageError(f"--set: {error}") from None


@click.command()
@_signing_options
def subscribe(**options: Any) -> None:
    """Enter the table by proof of work (both keys); a running node does this by itself."""
    request = _Request(**options)
    view, keys = request.view, request.keys
    account = AccountId(keys.owner_public_key)
    if account in view.state.uid_of_owner:
        raise NodeError(f"account {account.hex()} is in the table already")
    if len(view.state.ancestors) <= ANCESTOR_DEPTH:
        raise NodeError("the chain is too short to bind work to; wait for a few more blocks")
    height, ancestor = view.state.ancestors[-ANCESTOR_DEPTH]
    peer_key = PeerKey(keys.peer.public_key)
    start, deadline_s = 0, time.monotonic() + WORK_S
    while True:
        work = find_work(
            view.state.chain_id,
            account,
            peer_key,
            ancestor,
            view.state.work_target,
            start=start,
            tries=WORK_TRIES,
        )
        if work is not None:
            break
        start += WORK_TRIES
        if time.monotonic() > deadline_s:
            raise NodeError(f"no proof of work found in {WORK_S:g} s")
    request.send(
        Subscribe(peer_key=peer_key, ancestor=height, work=work, announcement=own_announcement())
    )


@click.command()
@click.argument("payload", metavar="HEX")
@click.option("--passphrase-fd", type=int, metavar="FD")
@click.option("--passphrase-file", type=click.Path(path_type=Path), metavar="FILE")
@data_dir_option
@json_option
def sign(
    payload: str,
    data_dir: Path | None,
    passphrase_file: Path | None,
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Sign the bytes that `--unsigned` printed; needs no network and no chain."""
    draft = _draft_of_payload(payload)
    directory = find_directory(data_dir)
    keys = _load_keys(directory, passphrase_file, passphrase_fd)
    print(f"signing for account {draft.account.hex()}: {draft.content}", file=sys.stderr)
    transaction = _sign(draft, keys)
    if as_json:
        print_json({"hash": transaction.hash.hex(), "transaction": transaction.encoded.hex()})
    else:
        click.echo(transaction.encoded.hex())


@click.command()
@click.argument("transaction", metavar="HEX")
@data_dir_option
@json_option
def submit(transaction: str, data_dir: Path | None, as_json: bool) -> None:
    """Hand a signed transaction to the running node; `-` reads it from standard input."""
    text = sys.stdin.read() if transaction == "-" else transaction
    try:
        decoded = decode_transaction(bytes.fromhex(text.strip()))
    except (DecodeError, ValueError) as error:
        raise UsageError(f"not a signed transaction: {error}") from None
    open_local_api(find_directory(data_dir)).submit(decoded.encoded)
    _print_sent(decoded, as_json=as_json)


class _Request:
    """What the signing verbs share: the chain as it is, the keys, and how to send."""

    def __init__(
        self,
        *,
        data_dir: Path | None,
        passphrase_file: Path | None,
        passphrase_fd: int | None,
        fee: str | None,
        unsigned: bool,
        wait: bool,
        as_json: bool,
    ) -> None:
        self.directory = find_directory(data_dir)
        self.view: ChainView = read_chain(self.directory)
        self._passphrase_file = passphrase_file
        self._passphrase_fd = passphrase_fd
        self._fee = None if fee is None else int(_amount(fee, "--fee"))
        self._unsigned = unsigned
        self._wait = wait
        self._as_json = as_json
        self._keys: Keys | None = None

    @property
    def keys(self) -> Keys:
        """The node's keys, unlocked when first needed."""
        if self._keys is None:
            self._keys = _load_keys(self.directory, self._passphrase_file, self._passphrase_fd)
        return self._keys

    def send(self, content: Content) -> None:
        """Build, sign and submit; or print what has to be signed elsewhere."""
        account = AccountId(self.directory.load_owner_public_key())
        draft = draft_of(
            self.view.state, self.view.genesis.parameters, account, content, fee=self._fee
        )
        if self._unsigned:
            if self._as_json:
                print_json({"payload": draft.payload.hex(), "role": draft.role.name.lower()})
            else:
                click.echo(draft.payload.hex())
            return
        transaction = _sign(draft, self.keys)
        open_local_api(self.directory).submit(transaction.encoded)
        if self._wait:
            self._wait_until_final(transaction)
        _print_sent(transaction, as_json=self._as_json)

    def show_row(self) -> None:
        """The own row, and whether the next one can be paid for."""
        view, account = self.view, AccountId(self.directory.load_owner_public_key())
        uid = view.state.uid_of_owner.get(account)
        if uid is None:
            raise NodeError("this node has no account yet; a running node subscribes by itself")
        row, parameters = view.state.rows[uid], view.genesis.parameters
        pending = pending_of(view.state, uid, parameters) // PENDING_ONE
        from_row = pending * row.weight_to(uid) // WEIGHT_ONE
        short = parameters.fee - from_row - view.state.stake[uid]
        facts: dict[str, Any] = {
            "uid": uid,
            "height": view.tip.height,
            "weights": {
                str(view.peer_id(other)): weight / WEIGHT_ONE
                for other, weight in row.entries
                if other in view.state.accounts
            },
            "fee": parameters.fee,
            "fee_from_pending": min(parameters.fee, from_row),
            "affordable": short <= 0,
            "affordable_in_blocks": _blocks_until(view, uid, short),
        }
        if self._as_json:
            print_json(facts)
            return
        for name, weight in facts["weights"].items():
            click.echo(
                f"{weight:.4f}  {name}{'  (itself)' if name == str(view.peer_id(uid)) else ''}"
            )
        click.echo(_affordable_text(facts))

    def _wait_until_final(self, transaction: Transaction) -> None:
        """Until the key's nonce has passed it. Raises NodeError after WAIT_S."""
        deadline_s = time.monotonic() + WAIT_S
        while time.monotonic() < deadline_s:
            state = read_chain(self.directory).state
            uid = state.uid_of_owner.get(transaction.account)
            by_peer = transaction.role is Role.PEER
            if uid is not None:
                nonce = (state.peer_nonce if by_peer else state.owner_nonce)[uid]
                if nonce > transaction.nonce:
                    return
            if state.height > transaction.expiry:
                break
            time.sleep(POLL_S)
        raise NodeError(f"transaction {transaction.hash.hex()} is not in a final block yet")


def _load_keys(directory: DataDirectory, file: Path | None, fd: int | None) -> Keys:
    """The keys, asking for a passphrase on a terminal when they are sealed and none was given."""
    passphrase = read_passphrase(file=file, fd=fd, environ=os.environ)
    sealed = directory.has_keys() and is_sealed(directory.peer_key, "peer")
    if directory.owner_key.exists():
        sealed = sealed or is_sealed(directory.owner_key, "owner")
    if passphrase is None and sealed and sys.stdin.isatty():
        passphrase = click.prompt("passphrase", hide_input=True, err=True).encode()
    if passphrase is None and sealed:
        raise PassphraseError("the keys are sealed: give --passphrase-file or --passphrase-fd")
    if not directory.has_keys():  # the cold machine of an owner
        owner = load_key(directory.owner_key, "owner", passphrase=passphrase)
        return Keys(peer=owner, owner=owner, owner_public_key=owner.public_key)
    return directory.load_keys(passphrase=passphrase)


def _sign(draft: Draft, keys: Keys) -> Transaction:
    if draft.account != keys.owner_public_key:
        raise UsageError(f"this directory's account is {keys.owner_public_key.hex()}")
    if draft.role is Role.OWNER and keys.owner is None:
        raise KeyMissing("the owner key is not on this machine: use --unsigned, sign it there")
    identity = keys.owner if draft.role is Role.OWNER and keys.owner is not None else keys.peer
    named = named_peer_key(draft.content)
    peer = None if named is None else Ed25519Signer(keys.peer.seed)
    try:
        return draft.sign(Ed25519Signer(identity.seed), peer)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _draft_of_payload(text: str) -> Draft:
    """What a payload says. Raises UsageError for anything that is none."""
    try:
        payload = bytes.fromhex(text.strip())
    except ValueError:
        raise UsageError("the bytes to sign must be hex") from None
    for signatures in (SIGNATURE, SIGNATURE * 2):
        try:
            decoded = decode_transaction(payload + signatures)
        except DecodeError:
            continue
        return Draft(
            chain_id=decoded.chain_id,
            account=decoded.account,
            nonce=decoded.nonce,
            expiry=decoded.expiry,
            fee=decoded.fee,
            content=decoded.content,
        )
    raise UsageError("not the bytes of a transaction")


def _amount(text: str, option: str) -> Amount:
    """Tokens as people write them, in base units, exactly."""
    try:
        value = Decimal(text) * TOKEN
        if value != value.to_integral_value() or not 0 < value < 2**55:
            raise InvalidOperation
    except InvalidOperation:
        raise UsageError(f"{option} {text}: expected tokens, at most nine decimals") from None
    return Amount(int(value))


def _blocks_until(view: ChainView, uid: Uid, short: int) -> int | None:
    """Blocks until the self edge of the pending emission covers what is missing; None for never."""
    state, parameters = view.state, view.genesis.parameters
    if short <= 0:
        return 0
    own_weight = state.rows[uid].weight_to(uid)
    a_block = (state.stake[uid] * state.scaling[uid] >> 30) * parameters.inflation * own_weight
    if not state.is_open or not a_block:
        return None
    return -(-short * PENDING_ONE * WEIGHT_ONE // a_block)


def _affordable_text(facts: dict[str, Any]) -> str:
    fee = tokens(facts["fee"])
    if facts["affordable"]:
        return f"another row costs {fee} tokens and can be published now"
    if facts["affordable_in_blocks"] is None:
        return f"another row costs {fee} tokens, which neither stake nor pending emission covers"
    return f"another row costs {fee} tokens: affordable in {facts['affordable_in_blocks']} blocks"


def _print_sent(transaction: Transaction, *, as_json: bool) -> None:
    facts = {
        "hash": transaction.hash.hex(),
        "kind": type(transaction.content).__name__,
        "nonce": transaction.nonce,
        "expiry": transaction.expiry,
        "fee": transaction.fee,
    }
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{facts['kind']} {facts['hash']} sent, nonce {facts['nonce']}")
