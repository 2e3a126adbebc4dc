"""The other end of a running node's HTTP interface: what the verbs use to ask it.

The rule: the address and the token come from the node's own directory, the call stays on loopback,
and every way it can fail is one line: nothing runs there, or the node said no and why.
"""

from __future__ import annotations

import http.client
import json
import urllib.parse
from dataclasses import dataclass, field
from typing import Any, Final

from node.data_directory import DataDirectory
from node.errors import ApiError, ApiRefused, NodeNotRunning

TIMEOUT_S: Final = 10.0
"""The node answers from memory; a busy training step may hold it for a second."""
ANSWER_BYTES_MAX: Final = 64 << 20
"""4,096 peers with full rows are about 20 MiB of JSON."""
LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class LocalApi:
    """The interface of one running node."""

    address: str
    token: str = field(repr=False)

    def get(self, path: str) -> Any:
        """The JSON of a view, as of now. Raises NodeNotRunning, ApiRefused or ApiError."""
        return self._decoded(self._call("GET", path, None))

    def submit(self, transaction: bytes) -> Any:
        """Hand over a canonical transaction. Raises ApiRefused with the node's reason."""
        return self._decoded(self._call("POST", "/submit", transaction.hex().encode()))

    def _call(self, method: str, path: str, body: bytes | None) -> bytes:
        url = urllib.parse.urlsplit(self.address)
        if url.scheme != "http" or url.hostname not in LOOPBACK:
            raise ApiError(f"{self.address} is not an address on this machine")
        connection = http.client.HTTPConnection(url.hostname, url.port, timeout=TIMEOUT_S)
        try:
            headers = {"Authorization": f"Bearer {self.token}"} if body is not None else {}
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            answer = response.read(ANSWER_BYTES_MAX + 1)
        except ConnectionRefusedError:
            raise NodeNotRunning(f"no node answers at {self.address}") from None
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{self.address}{path}: {error or type(error).__name__}") from None
        finally:
            connection.close()
        if len(answer) > ANSWER_BYTES_MAX:
            raise ApiError(f"{self.address}{path}: the answer is too long")
        if response.status != 200:
            raise ApiRefused(_reason(response.status, answer))
        return answer

    def _decoded(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except ValueError:
            raise ApiError(f"{self.address} answered something else than JSON") from None


def open_local_api(directory: DataDirectory) -> LocalApi:
    """The interface of the node that runs on a directory.

    Raises NodeNotRunning when none does, ApiError when its record is unreadable.
    """
    try:
        record = json.loads(directory.api.read_bytes())
        return LocalApi(str(record["address"]), str(record["token"]))
    except FileNotFoundError:
        raise NodeNotRunning(f"no node runs on {directory.path}") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise ApiError(f"{directory.api} cannot be read") from None


def _reason(status: int, answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the node answered with status {status}"
