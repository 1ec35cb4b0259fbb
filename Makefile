# Every task is one command. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(VENV)/.pip
TEST_DATA := .test-data/.unpacked
PROTO := proto/notebook_runner/v1/notebook_runner.proto
# The oldest suitable tools: their output runs with protobuf 6 and 7 (see CONTRIBUTING.md).
GENERATE_VENV := .venv-generate
# The release tools are separate from the test environment.
RELEASE_VENV := .venv-release
# Each program that an integration extends has an environment of its own, from requirements-integrations/HOST.lock.
HOST_VENVS := .venv-integrations
HOSTS ?= $(basename $(notdir $(wildcard requirements-integrations/*.in)))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, as in many containers, each process compiles this project and its tests again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install hosts demo serve dev test test-unit test-all coverage mutation faults integrations cold cold-full cluster cluster-full postgres postgres-full container chaos soak attack plain check hooks format generate openapi contract docs docs-serve pictures release image image-report lock bench figures bench-cluster bench-replicas scale clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ name[NR] = $$1; text[NR] = $$2; if (length($$1) > width) width = length($$1) } \
	  END { for (n = 1; n <= NR; n++) printf "%-" width "s  %s\n", name[n], text[n] }'

install: $(INSTALLED) $(TEST_DATA) ## Install the development environment into .venv, and download the test data

# A current pip takes half the time of Python 3.11's own. It also installs into environments that have no pip.
INSTALL_INTO = $(BIN)/pip --python $(1)/bin/python install --quiet --require-hashes --requirement
$(PIP): requirements-pip.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements-pip.lock
	@touch $@

$(INSTALLED): pyproject.toml requirements.lock client/notebook_runner/_version.py $(PIP)
	@echo "Installing the packages of requirements.lock (some minutes)"
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	@echo "Installing notebook-runner"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Notebooks of other projects' test suites. pip reads their metadata with installed packages, so it builds nothing.
$(TEST_DATA): tests/data.lock tests/support/public_notebooks.py | $(INSTALLED)
	@echo "Downloading the test data (tests/data.lock)"
	@rm -rf $(@D)
	@$(BIN)/pip download --quiet --no-deps --no-build-isolation --no-binary nbclient,nbconvert --require-hashes \
	  --requirement tests/data.lock --dest $(@D)/downloads || { echo >&2 \
	  "Cannot download the distributions in tests/data.lock. Run make install again with access to a package index."; exit 1; }
	@$(BIN)/python -m tests.support.public_notebooks
	@touch $@

demo: $(INSTALLED) ## Run examples/quickstart.ipynb through a server, live in the terminal
	@$(BIN)/python examples/demo.py

serve: $(INSTALLED) ## Start a server with default settings
	@$(BIN)/notebook-runner-server --notebook-root examples --default-notebook quickstart.ipynb

dev: $(INSTALLED) ## Start a server that restarts when a source file changes
	$(BIN)/watchfiles --filter python '$(BIN)/notebook-runner-server --log-format console --drain-timeout 2 --notebook-root examples --default-notebook quickstart.ipynb' client server

# The tests of a module share its servers, so they run in one process. Most of the time they wait, so more
# processes than cores pay off.
BY_FILE := --dist loadfile --no-loadscope-reorder
PROCESSES := 3
PARALLEL ?= -n $(PROCESSES) $(BY_FILE)
PYTEST := $(BIN)/pytest
# Markers select the kind of test (pyproject.toml, tests/conftest.py).
PROMISES := unit or integration or e2e
# They wait longer than those of other kinds: four processes are faster here, and slower there.
test: PROCESSES := 4
test: install ## Run the unit tests, and test each promise through a real server
	$(PYTEST) $(PARALLEL) -m "$(PROMISES)"

test-unit: install ## Run the tests that start no server
	$(PYTEST) $(PARALLEL) -m unit

faults: install ## Run the tests that kill, starve, flood or attack a server, then the load tests
	$(PYTEST) $(PARALLEL) -m "fault or long"
	$(PYTEST) -m load

$(HOST_VENVS)/%/.installed: requirements-integrations/%.lock | $(PIP)
	@echo "Creating $(@D)"
	@rm -rf $(@D)
	@$(PYTHON) -m venv --without-pip $(@D)
	@$(call INSTALL_INTO,$(@D)) $<
	@touch $@

hosts: $(HOSTS:%=$(HOST_VENVS)/%/.installed) ## Create the environments of the programs that integrations extend

# Airflow reports a deferred task as failed if its scheduler is starved (apache/airflow#72716), so nothing runs beside it.
ALONE := airflow
TESTS_OF = $(foreach host,$(1),tests/integrations/test_$(subst -,_,$(host)).py)
integrations: install ## Test each integration in its host's own environment (HOSTS="papermill prefect": only in these)
	@$(MAKE) --no-print-directory --jobs $(PROCESSES) hosts
	$(if $(filter-out $(ALONE),$(HOSTS)),$(PYTEST) $(PARALLEL) -m host $(call TESTS_OF,$(filter-out $(ALONE),$(HOSTS))))
	$(if $(filter $(ALONE),$(HOSTS)),$(PYTEST) -m host $(call TESTS_OF,$(filter $(ALONE),$(HOSTS))))

cold: install ## Repeat the tests of the guarantees without warm kernels
	$(PYTEST) $(PARALLEL) --cold -m guarantee

# Kernels that start cold take processor time, so more processes than cores would only delay each other.
cold-full: PROCESSES := 2
cold-full: install ## Run all tests of whole runs without warm kernels
	$(PYTEST) $(PARALLEL) --cold -m whole_run

test-all: test faults integrations cold cluster postgres container ## Run all tests, including those on a Dask cluster, on PostgreSQL and in containers

coverage: install ## Run the tests of `make test`, and print the lines and branches that they do not execute
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) -m "$(PROMISES)"; status=$$?; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report; exit $$status

mutation: install ## Run mutation tests on the modules that only compute, and print the surviving mutants
	$(BIN)/python -m checks.mutation

CLUSTER := $(PYTEST) $(PARALLEL)
ON_CLUSTER := $(PYTEST) $(PARALLEL) --executor dask
cluster: install ## Run the tests of a Dask cluster, and repeat the tests of the guarantees on one
	$(CLUSTER) -m cluster
	$(ON_CLUSTER) -m guarantee

cluster-full: install ## Run all tests of clusters, whole runs and faults on a Dask cluster
	$(CLUSTER) -m "cluster or cluster_long"
	$(ON_CLUSTER) -m "whole_run or fault"

# Each process has a PostgreSQL of its own.
ON_POSTGRES := $(PYTEST) $(PARALLEL) --store postgres
postgres: install ## Run the tests of PostgreSQL, and repeat those of the store and of the guarantees on it (needs the packages postgresql and pgbouncer)
	$(PYTEST) $(PARALLEL) -m postgres
	$(ON_POSTGRES) -m "unit or guarantee" tests/runs tests/e2e

postgres-full: install ## Run all tests of stores, whole runs and faults with PostgreSQL
	$(PYTEST) $(PARALLEL) -m postgres
	$(ON_POSTGRES) -m "whole_run or fault or long" tests/e2e tests/faults
	$(ON_POSTGRES) tests/runs

container: install ## Build the image, and test it and all that starts it (needs podman, kubectl, nginx, promtool and systemd)
	$(BIN)/pytest tests/container

ROUNDS ?= 500
SEED ?= 0
chaos: install ## Kill processes, fill disks, fail file operations and damage state folders at random, ROUNDS rounds each (SEED=0: a random seed)
	CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(SEED) CHAOS_LEASE=3 DAMAGE_ROUNDS=$(ROUNDS) DAMAGE_SEED=$(SEED) FULL_DISK_ROUNDS=$(ROUNDS) \
	  FULL_DISK_SEED=$(SEED) IO_FAULT_ROUNDS=$(ROUNDS) IO_FAULT_SEED=$(SEED) \
	  $(BIN)/pytest -s -o faulthandler_timeout=0 tests/faults/test_chaos.py tests/faults/test_postgres_chaos.py tests/faults/test_replica_chaos.py tests/cluster/test_cluster_chaos.py tests/faults/test_damaged_state.py tests/faults/test_full_disk.py tests/faults/test_io_faults.py

RUNS ?= 1000
STREAMS ?= 2000
CELLS ?= 10000
soak: install ## Execute RUNS runs and drop STREAMS streams, and check for leaks; show a run of CELLS cells in a browser
	SOAK_RUNS=$(RUNS) SOAK_STREAMS=$(STREAMS) SOAK_CELLS=$(CELLS) \
	  $(BIN)/pytest -s -o faulthandler_timeout=0 tests/faults/test_soak.py tests/page/test_page_faults.py::test_a_large_run

CONNECTIONS ?= 2000
ATTACK_SECONDS ?= 10
attack: install ## Flood a server on loopback with CONNECTIONS connections, ATTACK_SECONDS for each kind of flood
	ATTACK_CONNECTIONS=$(CONNECTIONS) ATTACK_SECONDS=$(ATTACK_SECONDS) ATTACK_CALL_SECONDS=1 $(BIN)/pytest -s tests/security/test_floods.py tests/security/test_slow_readers.py

plain: install ## Run the security tests as an unprivileged user, even if root runs make
	$(BIN)/python -m tests.as_nobody $(BIN)/pytest -p no:cacheprovider tests/security

check: $(INSTALLED) ## Run all linters, type checks and other static checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m checks.lint_ignores
	$(BIN)/python -m checks.repository_paths
	$(BIN)/python -m checks.wording
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/contract.binpb
	$(MAKE) --no-print-directory generate OUT=$(VENV)/generated
	diff -r -x __init__.py -x __pycache__ $(VENV)/generated/notebook_runner/v1 client/notebook_runner/v1
	$(MAKE) --no-print-directory docs

hooks: $(INSTALLED) ## Install the pre-commit hooks, which run the fast checks
	$(BIN)/pre-commit install

format: $(INSTALLED) ## Format the sources and the contract
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

$(GENERATE_VENV)/.installed: requirements-generate.lock | $(PIP)
	$(PYTHON) -m venv --without-pip $(GENERATE_VENV)
	$(call INSTALL_INTO,$(GENERATE_VENV)) $<
	@touch $@

OUT ?= client
generate: $(GENERATE_VENV)/.installed ## Generate client/notebook_runner/v1 from the contract
	@mkdir -p $(OUT)
	PATH="$(CURDIR)/$(GENERATE_VENV)/bin:$$PATH" $(GENERATE_VENV)/bin/python -m grpc_tools.protoc -I proto \
	  --python_out=$(OUT) --grpc_python_out=$(OUT) --mypy_out=quiet:$(OUT) --mypy_grpc_out=quiet:$(OUT) $(PROTO)

openapi: $(INSTALLED) ## Generate the OpenAPI document of the HTTP API from the contract
	$(BIN)/python -m docsite.openapi

contract: $(INSTALLED) ## Snapshot the contract as the compatibility baseline
	$(BIN)/buf build --output proto/contract.binpb --exclude-source-info

# Silences the theme's notice about its end of maintenance.
export NO_MKDOCS_2_WARNING := 1
docs: $(INSTALLED) ## Build the documentation into site/, and check its links
	$(BIN)/python -m mkdocs build --strict --quiet

docs-serve: $(INSTALLED) ## Serve the documentation on 127.0.0.1:8000, and rebuild it on changes
	$(BIN)/python -m mkdocs serve --watch proto --watch client --watch examples

$(RELEASE_VENV)/.installed: requirements-release.lock
	@echo "Creating $(RELEASE_VENV)"
	@$(PYTHON) -m venv $(RELEASE_VENV)
	@$(RELEASE_VENV)/bin/pip install --quiet --require-hashes --requirement requirements-release.lock
	@touch $@

pictures: $(INSTALLED) ## Create the pictures of the README and of the guides again (needs tmux and Chromium)
	$(BIN)/python -m docsite.pictures

release: $(RELEASE_VENV)/.installed ## Build the last commit into dist/, check it, and test the wheel (see RELEASING.md)
	@.ci/release $(RELEASE_VENV)/bin

ENGINE ?= $(firstword $(shell command -v docker podman))
BUILD ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' client/notebook_runner/_version.py)
IMAGE := notebook-runner:$(VERSION)
# Who builds, as a URI, for the provenance.
BUILDER ?= urn:notebook-runner:local-build
STARTED := $(shell date -u +%Y-%m-%dT%H:%M:%SZ)
ATTEST := $(RELEASE_VENV)/bin/python image/attest.py --engine $(ENGINE) --builder $(BUILDER) --started $(STARTED) \
  --build-flags="$(BUILD)" --output image-output
image: $(RELEASE_VENV)/.installed ## Build both images, with SBOM and provenance in image-output/ (ENGINE=podman BUILD="build flags")
	$(ENGINE) build $(BUILD) --tag $(IMAGE) .
	$(ENGINE) build $(BUILD) --target data --tag $(IMAGE)-data .
	@$(ATTEST) --image $(IMAGE)
	@$(ATTEST) --image $(IMAGE)-data --target data

image-report: image ## Build both images, and print their layers and sizes, newest first
	@for image in $(IMAGE) $(IMAGE)-data; do \
	  echo "$$image"; \
	  $(ENGINE) history --format '{{.Size}}	{{.CreatedBy}}' $$image | grep -v '^0' | cut -c 1-100; \
	done

# The image has the versions that the tests run with.
LOCK_IMAGE := --constraint requirements.lock --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet --output-file image
lock: ## Update the locks (needs uv)
	uv pip compile pyproject.toml --extra server --extra uris --extra tracing --extra dask --extra http-api --extra webhooks --extra postgres --extra examples --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file requirements.lock
	uv pip compile requirements-pip.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file requirements-pip.lock
	uv pip compile requirements-generate.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements-generate.lock
	uv pip compile requirements-release.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file requirements-release.lock
	for host in $(HOSTS); do uv pip compile pyproject.toml requirements-integrations/$$host.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet --upgrade --output-file requirements-integrations/$$host.lock; done
	uv pip compile pyproject.toml --extra server --extra uris --extra tracing --extra dask --extra http-api --extra webhooks --extra postgres $(LOCK_IMAGE)/server.lock
	uv pip compile image/data.in $(LOCK_IMAGE)/data.lock
	uv pip compile image/build.in $(LOCK_IMAGE)/build.lock

bench: $(INSTALLED) ## Benchmark this service and its competitors
	$(BIN)/python -m benchmarks

figures: $(INSTALLED) ## Write the figures of the last benchmark into README.md and docs/performance.md
	$(BIN)/python -m benchmarks.pages bench-output/bench.json

bench-cluster: $(INSTALLED) ## Benchmark a Dask cluster of 1 to 8 workers against the process pool
	$(BIN)/python -m benchmarks --only cluster

bench-replicas: $(INSTALLED) ## Benchmark 1, 2 and 4 servers on one PostgreSQL (needs the package postgresql)
	$(BIN)/python -m benchmarks --only replicas

scale: $(INSTALLED) ## Measure the cost of a cell, an event, a MB and a run at three sizes
	$(BIN)/python -m benchmarks --only scaling

clean: ## Remove everything that the other targets created
	rm -rf $(VENV) $(GENERATE_VENV) $(RELEASE_VENV) $(HOST_VENVS) .mutation .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache demo-output dist image-output site
