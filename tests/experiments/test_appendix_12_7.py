"""The program of appendix 12.7: each printed fault shows, the mended one is right."""

from __future__ import annotations

from experiments.appendix_12_7 import Switches, gradient_error, simulate, start, wrong_signs

BLOCKS = 150


def test_as_printed_it_measures_the_wrong_peers() -> None:
    printed = simulate(start(0, Switches()), Switches(), BLOCKS)
    mended = Switches(slice=True)
    assert printed[0] < 0.1
    assert 0.4 < simulate(start(0, mended), mended, BLOCKS)[0] < 0.5


def test_as_intended_the_cabal_decays() -> None:
    history = simulate(start(0, Switches.intended()), Switches.intended(), BLOCKS)
    assert len(history) == BLOCKS
    assert history[-1] < history[0] / 2


def test_only_the_mended_gradient_agrees_with_finite_differences() -> None:
    assert gradient_error(Switches()) > 0.5
    assert gradient_error(Switches.intended()) < 1e-4


def test_the_pseudo_inverse_takes_noise_for_connections() -> None:
    wrong, entries = wrong_signs()
    assert 0 < wrong < entries == 120 * 120
