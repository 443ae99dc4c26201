# Every target first installs what it needs into .venv; `make` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-kafka test-faults check fix bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# Recreated when the requirements change; an incomplete installation leaves no stamp.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/streamadapt warm
	@touch $@

demo: $(STAMP) ## Run the demo (SPEED=..., JSON=file, LABELS=...)
	@exec $(BIN)/streamadapt demo $(if $(SPEED),--speed '$(SPEED)') $(if $(JSON),--json '$(JSON)') $(if $(LABELS),--labels '$(LABELS)')

PYTEST := $(BIN)/python -m pytest --dist worksteal
BUSY := --numprocesses auto --maxprocesses 4
# These mostly wait for brokers.
WAITING := --numprocesses 4

test: $(STAMP) ## Run the quick tests: minutes
	@$(PYTEST) $(BUSY) -m 'not slow'

test-slow: $(STAMP) ## Run the tests that `make test` leaves out, and more examples of each property
	@$(PYTEST) $(BUSY) -m 'slow or hypothesis' --hypothesis-profile full

test-kafka: $(STAMP) ## Run the tests of Kafka on the broker that STREAMADAPT_TEST_BROKER names (host:port)
	@test -n "$$STREAMADAPT_TEST_BROKER" || { echo "STREAMADAPT_TEST_BROKER must name a broker, as in 127.0.0.1:9092" >&2; exit 2; }
	@$(PYTEST) $(WAITING) -m kafka

test-faults: $(STAMP) ## Run all fault tests and the whole faults benchmark, into build/faults.json: hours
	STREAMADAPT_FAULTS=full $(BIN)/python -m pytest tests/test_kill.py tests/test_benchmark_faults.py \
		tests/test_benchmark_cluster.py
	$(BIN)/python -m benchmarks.faults --json build/faults.json

check: $(STAMP) ## Lint, formatting, types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(STAMP) ## Repair lint and formatting automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure the quality of the adaptation into build/quality.json
	@mkdir -p build
	$(BIN)/python -m benchmarks.quality --json build/quality.json
