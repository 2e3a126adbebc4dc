"""The command line: which verbs there are, and how a command ends.

The rule: a command ends with 0 (done), 1 (failed), 2 (wrong usage) or 130 (interrupted), and what
went wrong is one clear line on standard error. A defect of this program is not dressed up: it shows
its traceback. Verbs are imported when they are used, so that `--help` needs none of them; no verb
at all, or only options, means `run`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, Final

import click

from node.errors import InvariantViolation, NodeError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
PROGRAM: Final = "agora"

VERBS: Final[dict[str, tuple[str, str]]] = {
    "run": ("node.command.run:run", "Start a node: of a new local network, or join one (default)."),
    "testnet": ("node.command.testnet:testnet", "Run a whole local network of processes."),
    "simulate": ("node.simulator.command:simulate", "Run the ordering under seeded faults."),
    "status": ("node.command.query:status", "What the running node is doing."),
    "peers": ("node.command.query:peers", "Whom the running node is connected to."),
    "metagraph": ("node.command.query:metagraph", "Stake, rank, trust and weights of everybody."),
    "explain": ("node.command.explain:explain", "Why a peer earned what it earned."),
    "weights": ("node.command.transact:weights", "Show or publish this node's row of weights."),
    "transfer": ("node.command.transact:transfer", "Move stake to another account."),
    "subscribe": ("node.command.transact:subscribe", "Enter the table by proof of work."),
    "sign": ("node.command.transact:sign", "Sign a transaction offline; prints hex."),
    "submit": ("node.command.transact:submit", "Hand a signed transaction to the running node."),
    "genesis": ("node.command.genesis:genesis", "Write or check the genesis of a network."),
    "keys": ("node.command.keys:keys", "Create and show keys."),
    "replay": ("node.command.replay:replay", "Execute a stored chain again and compare the roots."),
    "doctor": ("node.command.doctor:doctor", "Look for what keeps a node from working."),
    "config": ("node.command.config:config", "Show the configuration and where it comes from."),
}
"""Verb → (module:command, one line of help)."""

_DEFAULT_VERB: Final = "run"
_ROOT_OPTIONS: Final = ("--help", "-h", "--version")


class _LazyGroup(click.Group):
    """Imports a verb's module only when that verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        try:
            command: click.Command = getattr(import_module(module), name)
        except ModuleNotFoundError as error:
            raise click.ClickException(_missing(cmd_name, error)) from error
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _ROOT_OPTIONS):
            args = [_DEFAULT_VERB, *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Without a verb a node starts; `agora run --help` lists its options.",
)
@click.version_option(package_name="agora-node", prog_name=PROGRAM)
def root() -> None:
    """Agora: a peer-to-peer market for machine intelligence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command (the process's own by default); returns its exit code, never raises."""
    program = PROGRAM if os.path.basename(sys.argv[0]) == PROGRAM else "python -m node"
    try:
        result = root.main(
            args=None if arguments is None else list(arguments),
            prog_name=program,
            standalone_mode=False,
        )
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except BrokenPipeError:
        # Whoever read us has gone (`| head`); Python would complain again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except BaseException as error:  # noqa: BLE001 - the root: every way to end becomes a code
        return _report(error)
    return result if isinstance(result, int) else 0


def _report(error: BaseException) -> int:
    """Say on standard error how the command failed; returns the exit code."""
    leaves = list(_leaves(error))
    if any(isinstance(leaf, KeyboardInterrupt | click.Abort) for leaf in leaves):
        return EXIT_INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    for leaf in leaves:
        if isinstance(leaf, click.UsageError):
            _say(f"{leaf.format_message()} (see {_help_of(leaf)})")
            return leaf.exit_code
        if isinstance(leaf, click.ClickException):
            _say(leaf.format_message())
            return leaf.exit_code
    if all(_is_expected(leaf) for leaf in leaves):
        _say(str(leaves[0]) or type(leaves[0]).__name__)
        return leaves[0].exit_code if isinstance(leaves[0], NodeError) else EXIT_FAILED
    traceback.print_exception(error)
    _say("this is a defect of the program; the lines above say where")
    return EXIT_FAILED


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions of nested groups (trio's nurseries raise groups)."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error


def _is_expected(error: BaseException) -> bool:
    """Whether an error is one line for a person: ours, or a package's below that is already loaded.

    A package that was never imported cannot have raised, so none is imported to find out.
    """
    roots: list[Any] = [NodeError]
    for module, name in (
        ("p2p.errors", "NetworkError"),
        ("consensus.errors", "ConsensusError"),
        ("tensorwire.errors", "TensorwireError"),
    ):
        root_class = getattr(sys.modules.get(module), name, None)
        if root_class is not None:
            roots.append(root_class)
    return isinstance(error, tuple(roots)) and type(error).__name__ != InvariantViolation.__name__


def _say(text: str) -> None:
    print(f"{PROGRAM}: {' '.join(text.split())}", file=sys.stderr)


def _help_of(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "python -m node"
    return f"`{path} --help`"


def _missing(verb: str, error: ModuleNotFoundError) -> str:
    """What a verb's missing import means for the person who typed it."""
    if (error.name or "").split(".")[0] in ("torch", "sklearn", "safetensors"):
        return f"{verb} needs {error.name}: pip install 'agora-node[neuron]'"
    return f"{verb} is not available in this installation: no module {error.name}"
