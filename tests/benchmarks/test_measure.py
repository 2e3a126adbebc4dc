"""Tables of the benchmarks: every heading and every figure is there whole, however narrow it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from rich.cells import cell_len

from benchmarks import tensor, transport
from benchmarks.measure import print_table

ENVIRONMENT = {"load_average": [1.25, 0.5, 0.25], "cpus": 2, "rounds": 5}


def check_whole(printed: str, texts: Sequence[object], width: int) -> None:
    """Each of `texts` is the whole of some cell, and no line is longer than `width`."""
    cells = {cell.strip() for line in printed.splitlines() for cell in re.split("[│┃]", line)}
    for text in texts:
        assert str(text) in cells, f"{text} is not there\n{printed}"
    assert "…" not in printed
    assert max(map(cell_len, printed.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 132, None])
def test_the_transport_table_is_whole(
    width: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal of 80 columns, on a wide one, and piped."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    names = ("agora", "tcp", "grpc_aio_tls", "py_libp2p")
    figures = {
        name: {column: 10_000.125 * place + row for place, column in enumerate(transport.COLUMNS)}
        for row, name in enumerate(names)
    }
    transport.print_result(
        ENVIRONMENT
        | {
            "contenders": figures,
            "beside": {"grpc_aio_tls_unary": figures["tcp"]},
            "idle": {
                name: {"rss_MiB": 81.7, "cpu_percent": 0.03}
                for name in (*names, "grpc_aio_tls_unary")
            },
            "ratios": transport.ratios(figures),
        }
    )
    printed = capsys.readouterr().out
    numbers = [figure for each in figures.values() for figure in each.values()]
    heads = [*transport.COLUMNS, "idle RSS MiB", "idle CPU %"]
    check_whole(printed, [*numbers, *heads, *names, "81.7", "0.03"], width or 80)
    assert "load average [1.25, 0.5, 0.25], 2 CPUs" in printed


def test_the_tensor_table_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    figures = {"agora": dict.fromkeys(tensor.COLUMNS, 123_456.789)}
    tensor.print_result(ENVIRONMENT | {"contenders": figures, "ratios": {}, "missing": []})
    check_whole(capsys.readouterr().out, [*tensor.COLUMNS, 123_456.789], 80)


def test_a_column_wider_than_the_terminal_is_as_wide_as_it_has_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    wide = "x" * 60
    print_table("A title", ("who", wide, "more"), [("a", 1, wide), ("b", "[bold]", 3)])
    check_whole(capsys.readouterr().out, ["who", wide, "more", "[bold]", "a", "b"], 70)


def test_columns_that_fit_stay_beside_each_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table("A title", ("", *"abcdefghij"), [("row", *range(10))], caption="A caption")
    printed = capsys.readouterr().out
    assert printed.count("row") == printed.count("A title") == printed.count("A caption") == 1
