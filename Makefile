# Every target does all the set-up it needs on a fresh Debian/Ubuntu machine.
PYTHON ?= python3
RUN    := .venv/bin/python -W error::SyntaxWarning
SEED   ?=
SEEDS  ?= 500
SCALE  ?= 100
ARGS   ?=
.DEFAULT_GOAL := help
.PHONY: help setup testnet test check sim fuzz bench soak interop clean

help:            ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

testnet: setup   ## run a network of four real node processes for twenty blocks
	$(RUN) -m node testnet --nodes 4 --blocks 20 $(ARGS)

test: setup      ## run the test suite
	$(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

setup: .venv/installed   ## create .venv and install everything into it

.venv/installed: pyproject.toml .ci/prerequisites
	@PYTHON=$(PYTHON) .ci/prerequisites
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

check: setup     ## lint, format, types, import contracts, tidy test, vectors
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(RUN) -m pytest -q tests/test_tidy.py
	$(RUN) -m interop.generate --check
	$(RUN) -m interop.check

sim: setup       ## simulate 500 seeded networks, or replay one: make sim SEED=7
	$(RUN) -m node simulate $(if $(SEED),--seeds 1 --seed $(SEED) --trace,--seeds $(SEEDS)) $(ARGS)

fuzz: setup      ## the fuzzers and stateful machines with full case counts
	AGORA_TEST_SCALE=$(SCALE) $(RUN) -m pytest -n 2 -k "fuzz or stateful" --timeout 3600 $(ARGS)

bench: setup     ## every benchmark beside its contenders, as tables
	for b in mechanism chain transport gossip scale queue tensor; do $(RUN) -m benchmarks.$$b $(ARGS) || exit 1; done

soak: setup      ## a long real network with kills
	$(RUN) -m node testnet --nodes 4 --blocks 1000 --kill-every 15 $(ARGS)

interop: setup   ## exchange bytes with js-libp2p, go-libp2p and stock py-libp2p
	@PYTHON=$(PYTHON) .ci/prerequisites npm
	$(RUN) -m interop.matrix $(ARGS)

clean:           ## remove what set-up and tests made
	rm -rf .venv interop/js/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis
