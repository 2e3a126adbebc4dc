"""The address book on disk: JSON, an object of peer ids to lists of multiaddrs.

The rule: it is a cache. What cannot be read is left out, an unreadable file is as good as none,
and a file is replaced whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from p2p.address_book import AddressBook
from p2p.errors import MalformedAddress, MalformedPeerId
from p2p.identity import PeerId

FILE_BYTES_MAX = 8 * 1024 * 1024
"""4,096 peers with 16 addresses of 100 characters are 6.5 MB."""

_log = logging.getLogger(__name__)


def save_addresses(path: Path, book: AddressBook) -> None:
    """Write the book; failing to is logged and no more, as the book is only a cache."""
    peers = {str(peer): [str(address) for address in book.of(peer)] for peer in book.peers}
    draft = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(peers, indent=1), encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        _log.warning("the address book cannot be saved: %s", error)


def load_addresses(path: Path, book: AddressBook) -> None:
    """Add what the file holds to the book; nothing when there is no such file."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise ValueError("it is too long")
        peers = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(peers, dict):
            raise ValueError("it is not an object")
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError) as error:
        _log.warning("the saved address book is left out: %s", error)
        return
    for text, addresses in peers.items():
        with contextlib.suppress(MalformedPeerId, MalformedAddress, AttributeError, TypeError):
            book.add(PeerId(text), addresses)


__all__ = ["load_addresses", "save_addresses"]
