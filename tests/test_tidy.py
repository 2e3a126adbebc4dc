"""What linters cannot see: the shape of the tree and the purity of `consensus`, as tests."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("p2p", "tensorwire", "consensus", "node")
TOP_LEVEL = {
    *(".ci", ".gitignore", "CHANGELOG.md", "DECISIONS.md", "LICENSE", "Makefile", "README.md"),
    *("pyproject.toml", *PACKAGES, "tests", "interop", "benchmarks", "experiments", "examples"),
    "docs",
}
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base", "tools"}
LINES_MAX = 450

# The one place where a float may appear: see its docstring for the proof of exactness.
FLOAT_EXEMPT = {"exact_product"}
IMPURE_MODULES = {
    "time",
    "random",
    "os",
    "io",
    "socket",
    "trio",
    "secrets",
    "datetime",
    "threading",
}


def tracked(*suffixes: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    paths = [ROOT / name for name in listed if name and name.endswith(suffixes)]
    return sorted(path for path in paths if path.exists() and "_pb2" not in path.name)


def sources(package: str) -> list[Path]:
    return [path for path in tracked(".py") if path.is_relative_to(ROOT / package)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


PRODUCT = [path for package in PACKAGES for path in sources(package)]
CONSENSUS = sources("consensus")


def test_the_top_level_holds_only_what_the_design_names() -> None:
    present = {path.relative_to(ROOT).parts[0] for path in tracked("")}
    assert present <= TOP_LEVEL


def test_no_file_is_a_drawer() -> None:
    assert [name_of(path) for path in tracked(".py") if path.stem in DRAWERS] == []


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_a_file_is_one_concept_and_says_which(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file opens with what it is"
    assert len(text.splitlines()) <= LINES_MAX, "split the concept"
    assert "TODO" not in text
    assert "FIXME" not in text


@pytest.mark.parametrize("path", PRODUCT, ids=name_of)
def test_public_names_have_docstrings(path: Path) -> None:
    missing = [
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert missing == []


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_holds_public_names(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    exported = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(
                isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
            )
        ),
        [],
    )
    assert list(exported) == sorted(exported)
    assert [name for name in exported if name.startswith("_")] == []


def floats(tree: ast.AST) -> Iterator[str]:
    """Yield every construct that could bring a float, chance or an unstable order into `tree`."""
    exempt = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name in FLOAT_EXEMPT
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in exempt:
            continue
        match node:
            case ast.Constant(value=float()):
                yield f"line {node.lineno}: float constant"
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield f"line {node.lineno}: true division"
            case ast.Call(func=ast.Name(id="float" | "hash" | "id")):
                yield f"line {node.lineno}: {node.func.id}()"  # type: ignore[attr-defined]
            case (
                ast.For(iter=ast.Set() | ast.SetComp())
                | ast.comprehension(iter=ast.Set() | ast.SetComp())
            ):
                yield "iteration over a set"
            case ast.For(iter=ast.Call(func=ast.Name(id="set" | "frozenset"))):
                yield f"line {node.lineno}: iteration over a set"
            case ast.Import(names=names):
                yield from (
                    f"line {node.lineno}: import {name.name}"
                    for name in names
                    if name.name.split(".")[0] in IMPURE_MODULES
                )
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in IMPURE_MODULES:
                yield f"line {node.lineno}: from {module}"


@pytest.mark.parametrize("path", CONSENSUS, ids=name_of)
def test_consensus_is_pure_and_deterministic(path: Path) -> None:
    assert list(floats(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "impure",
    ["x = 0.5", "x = a / b", "x = hash(a)", "for x in {1, 2}: pass", "import time", "x = float(1)"],
)
def test_the_purity_test_itself_can_fail(impure: str) -> None:
    assert list(floats(ast.parse(impure)))


def test_libp2p_is_imported_only_in_the_backend() -> None:
    importers = [
        name_of(path)
        for path in PRODUCT
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "libp2p")
        or (
            isinstance(node, ast.Import)
            and any(alias.name.split(".")[0] == "libp2p" for alias in node.names)
        )
    ]
    assert [name for name in importers if not name.startswith("p2p/backend/")] == []
