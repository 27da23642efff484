# What a fresh machine needs: Python 3.11 or newer with pip, and make. All else goes into .venv; `make test` also wants
# database servers, which it installs when it is root on Debian or Ubuntu, and asks for by name when it is not.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo demo-servers test lint bench soak reap-10k sqlite-schedules formal docs sim explore servers clean

help:
	@echo "make demo          see it at work; needs nothing installed"
	@echo "make demo-servers  the same on PostgreSQL and MariaDB servers of its own"
	@echo "make test          everything that must pass: lint, types, import rules, tests on real servers"
	@echo "make lint          the part of it that needs no servers"
	@echo "make formal        the protocol's models, searched by Spin: all of them and their mutants; some ten minutes"
	@echo "make bench         nodoubt beside its peers, on servers of its own; half an hour"
	@echo "make soak          processes and servers killed, stopped, cut off and filled up, for MINUTES=...; SEED=... again"
	@echo "make reap-10k      10,000 staged transactions past their deadline, three reapers at once: rate and memory"
	@echo "make sqlite-schedules  SQLite as a resource, alone, under SCHEDULES=... random schedules, from SEED=..."
	@echo "make docs          the documents as a site, in site/"
	@echo "make sim           the simulated world: SEED=... replays one schedule, HOURS=... hunts for one that fails"
	@echo "make explore       every order of the messages of small scenes, for HOURS=..."
	@echo "make clean         remove .venv, caches and builds"

demo: $(VENV)/.run
	@$(BIN)/nodoubt demo

demo-servers: $(VENV)/.run servers
	@$(BIN)/nodoubt demo --servers

# The tests come last, so that the last line tells how they ended.
test: $(VENV)/.dev servers benchmarks/node_modules lint
	$(BIN)/pytest -n $(JOBS) --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The small configuration is in `make test`: tests/formal.
formal: servers
	PYTHON=$(PYTHON) formal/run large

bench: $(VENV)/.dev servers benchmarks/node_modules
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks profile

# The small one is in `make test`: tests/soak.
MINUTES ?= 5
soak: $(VENV)/.dev
	@.ci/servers libfaketime
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

docs: $(VENV)/.dev
	$(BIN)/zensical build --strict

# make sim SEED=1809 [KEEP=1,15,17] [TRACE=1], make sim HOURS=8 [FIRST=...]; VARIANT=module:name for other scripts;
# BEYOND=1: steps outside and idempotency keys in every schedule.
WORLD := $(BIN)/python -m nodoubt.testing.world
FIRST ?= 0
sim: $(VENV)/.dev
	@$(WORLD) $(if $(SEED),--seed $(SEED) $(if $(KEEP),--keep $(KEEP)) $(if $(TRACE),--trace),--hours $(or $(HOURS),0.05) \
		--first $(FIRST) --jobs $(JOBS)) $(if $(BEYOND),--beyond) $(if $(VARIANT),--variant $(VARIANT))

explore: $(VENV)/.dev
	@$(WORLD) --explore $(if $(HOURS),--hours $(HOURS)) $(if $(VARIANT),--variant $(VARIANT))

# Bun is a peer; without npm it is left out, which the benchmarks say.
benchmarks/node_modules: benchmarks/package.json
	@npm install --prefix benchmarks --no-package-lock --no-audit --no-fund --loglevel=error && touch $@ || \
		echo "npm is missing, or cannot install: the benchmarks, and their tests, go without Bun" >&2

reap-10k: $(VENV)/.dev servers
	NODOUBT_REAP=10000 $(BIN)/pytest tests/steps/test_reaper.py -k many -s

# Four hundred of them are in `make test`.
sqlite-schedules: $(VENV)/.dev
	NODOUBT_SQLITE_SCHEDULES=$(or $(SCHEDULES),20000) NODOUBT_SQLITE_SEED=$(or $(SEED),2) \
		$(BIN)/pytest -n $(JOBS) -s tests/sqlite/test_sqlite_model.py

servers:
	@.ci/servers

clean:
	rm -rf $(VENV) build dist site .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf benchmarks/node_modules benchmarks/results soak/results
	find src tests benchmarks formal soak examples -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian splits ensurepip off from Python; where it is missing, the pip that is there fills the environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nodoubt needs Python 3.11 or newer. Name one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) >/dev/null || { $(PYTHON) -m venv --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[all,dev]'
	@touch $@ $(VENV)/.run
