PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "hostoffload needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@$(BIN)/python -m pip check --disable-pip-version-check >/dev/null
	@touch $@

.PHONY: demo
demo: setup  ## protect a real filesystem, write to it, prove the replica equal
	$(BIN)/hostoffload demo

.PHONY: test
test: setup  ## the fast layers, and the real broker: under 5 minutes
	$(BIN)/python -m pytest tests/tidy tests/unit tests/property tests/contract tests/integration -m "not slow" --cov --cov-report=term:skip-covered

.PHONY: ci
ci: setup  ## everything that .ci/run runs after installing its tools; what `make containers` runs stands apart
	$(BIN)/python -m pytest tests --ignore=tests/containers --cov --cov-report=term:skip-covered

.PHONY: bench
bench: setup  ## the agent beside nbdkit, end to end, RPO lag
	$(BIN)/python -m bench

SEEDS ?= 500

.PHONY: sim
sim: setup  ## the deterministic simulation and its canaries: SEEDS, or SEED to repeat one
	$(BIN)/python -m tests.simulation $(if $(filter-out 0,$(SEED)),--seed $(SEED),--seeds $(SEEDS))

SEED ?= 0
SECONDS ?= 170
KILLS ?= 100
FAULTS ?= kill,stop,restart,cut
BUFFER_MIB ?= 256

.PHONY: chaos
chaos: setup  ## kill, stop, restart and cut everything under load, and compare: SEED, SECONDS, KILLS, FAULTS, BUFFER_MIB
	$(BIN)/python -m tests.chaos --seed $(SEED) --seconds $(SECONDS) --kills $(KILLS) --faults $(FAULTS) --buffer-mib $(BUFFER_MIB)

.PHONY: containers
containers: setup  ## build the images and test the system deployed from them; an engine is started if none answers (root)
	@engine=$$(mktemp -d); trap 'docker/engine.sh stop "$$engine"; rm -rf "$$engine"' EXIT; eval "$$(docker/engine.sh start "$$engine")"; \
	HOSTOFFLOAD_BROKER_IMAGE=$$(docker/kafka/build.sh) && HOSTOFFLOAD_IMAGE=$$(docker/hostoffload/build.sh) \
	&& export HOSTOFFLOAD_BROKER_IMAGE HOSTOFFLOAD_IMAGE && $(BIN)/python -m pytest tests/containers

.PHONY: clean
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis .ruff_cache .coverage
