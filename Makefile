# Two commands set a clone up: `make demo` and `make test`. Both are quick the second time: the stamps
# below are as old as the last installation from pyproject.toml and constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt
STAMP := $(VENV)/.installed
STAMP_DEV := $(VENV)/.installed-dev
STAMP_BENCH := $(VENV)/.installed-bench
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input --constraint constraints.txt
# The first of these that is Python 3.11 or newer and can make a virtual environment.
PYTHONS := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python
BROKERS := redis rabbitmq kafka sqs elasticmq
# Tests wait more than they work: three processes share one set of brokers, and two processors.
SIDE_BY_SIDE := --numprocesses 3 --dist loadgroup

.PHONY: help bench bench-full guard scale demo faults simulate soak test test-compose check format coverage clean

help:
	@echo "make demo          the example shop on the memory broker"
	@echo "make test          unit tests, contract suite and example on memory, Redis, RabbitMQ, Kafka and SQS/SNS"
	@echo "make test-compose  the same on the servers of docker-compose.yml, which go on running"
	@echo "make faults        break brokers, networks and members; the figures go to docs/reliability.md"
	@echo "make soak          ten minutes of load with faults; fails when memory, tasks or descriptors grow"
	@echo "make simulate      random histories with faults in memory, for a minute"
	@echo "make check         formatting, lint, types"
	@echo "make format        mend formatting and what lint can mend"
	@echo "make bench         raw clients, this library and its peers side by side, into docs/benchmarks.md"
	@echo "make bench-full    the same with other sizes and loops, and how cost and memory scale, into docs/scaling.md"
	@echo "make scale         what one would deploy for a million messages a second, from these figures, into docs/scale.md"
	@echo "make guard         what a message costs, against what it cost before"
	@echo "make coverage      branch coverage of the portable layer, at least 95 %"

$(BIN)/python:
	@usable='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	find_python() { for p in $(PYTHONS); do if "$$p" -c "$$usable" 2>/dev/null; then echo "$$p"; return; fi; done; }; \
	python=$$(find_python); \
	if [ -z "$$python" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; \
		apt-get -qq update && apt-get -qq install -y --no-install-recommends python3 python3-venv >/dev/null; \
		python=$$(find_python); \
	fi; \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer with venv is needed; on Debian: apt-get install python3 python3-venv" >&2; exit 1; fi; \
	"$$python" -m venv $(VENV)

$(STAMP): $(INPUTS) | $(BIN)/python
	@echo "installing messaging into $(VENV) ..."
	@$(INSTALL) --editable '.[redis,rabbitmq,kafka,sqs]'
	@touch $@

$(STAMP_DEV): $(INPUTS) | $(BIN)/python
	@echo "installing messaging and its development tools into $(VENV) ..."
	@$(INSTALL) --editable '.[dev]'
	@touch $@ $(STAMP)

$(STAMP_BENCH): $(INPUTS) | $(BIN)/python
	@echo "installing messaging and what it is compared with into $(VENV) ..."
	@$(INSTALL) --editable '.[bench]'
	@touch $@ $(STAMP)

demo: $(STAMP)
	@$(BIN)/python -m examples.checkout

# `run` finds or starts the brokers, hands their URLs to the command by environment, and ends what it started.
test: $(STAMP_DEV)
	@$(BIN)/python -m messaging_contracts run $(BROKERS) -- $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

test-compose: $(STAMP_DEV)
	@docker compose version >/dev/null 2>&1 || { echo "docker compose is needed (docs.docker.com/compose/install); make test finds or starts servers without it" >&2; exit 1; }
	@docker compose up --detach --wait $(filter-out elasticmq,$(BROKERS))
	@set -a; . ./compose.env; set +a; \
	$(BIN)/python -m messaging_contracts run $(BROKERS) -- $(BIN)/python -m pytest $(SIDE_BY_SIDE) $(ARGS)

# Each fault on each broker, which are our own each time; the table goes into the documentation.
faults: $(STAMP_DEV)
	@$(BIN)/python -m messaging_contracts faults --whole --output docs/reliability.md --journals .cache/faults $(ARGS)

# Ten minutes of load with faults; fails when memory, tasks or file descriptors grow.
soak: $(STAMP_DEV)
	@$(BIN)/python -m messaging_contracts soak --output docs/soak.md $(ARGS)

# Random histories, each from its seed, for a minute, on two processors.
simulate: $(STAMP_DEV)
	@$(BIN)/python -m messaging_contracts simulate --processes 2 $(ARGS)

check: $(STAMP_DEV)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/pyright

format: $(STAMP_DEV)
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .

# Not pytest-cov: the pytest plugin imports `messaging` before pytest-cov would begin to measure.
coverage: $(STAMP_DEV)
	@$(BIN)/coverage erase
	@$(BIN)/python -m messaging_contracts run $(BROKERS) -- $(BIN)/coverage run -m pytest $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

bench: $(STAMP_BENCH)
	@$(BIN)/python -m messaging_contracts run redis rabbitmq kafka sqs -- \
		$(BIN)/python -m benchmarks --output docs/benchmarks.md $(ARGS)

# Small messages, large ones, the standard loop, then how it scales. About an hour.
bench-full: $(STAMP_BENCH)
	@$(BIN)/python -m messaging_contracts run redis rabbitmq kafka sqs -- sh -ec ' \
		$(BIN)/python -m benchmarks --output docs/benchmarks.md; \
		mkdir -p docs/benchmarks; \
		BENCHMARKS_SIZE=100 $(BIN)/python -m benchmarks --rounds 5 --output docs/benchmarks/100-bytes.md; \
		BENCHMARKS_SIZE=65536 $(BIN)/python -m benchmarks --scale 0.2 --rounds 5 --output docs/benchmarks/64-kib.md; \
		$(BIN)/python -m benchmarks --standard-loop --rounds 5 --output docs/benchmarks/standard-loop.md; \
		$(BIN)/python -m benchmarks.curves --output docs/scaling.md; \
		$(BIN)/python -m benchmarks.scale'

# From what `make bench` has kept; starts no broker.
scale: $(STAMP_DEV)
	@$(BIN)/python -m benchmarks.scale $(ARGS)

guard: $(STAMP_DEV)
	@$(BIN)/python -m benchmarks.guard

clean:
	@rm -rf $(VENV) .cache .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis dist build
