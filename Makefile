# One command each. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_DATA := .test-data/.unpacked
PROTO := proto/notebook_runner/v1/notebook_runner.proto
# The oldest tools that serve: their output runs with protobuf 6 and 7 (see CONTRIBUTING.md).
GENERATE_VENV := .venv-generate
# What builds and checks a release is no part of what the tests run with.
RELEASE_VENV := .venv-release
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo serve dev test test-unit test-all coverage mutation faults cold cluster cluster-full container chaos soak attack plain check hooks format generate contract docs docs-serve release image image-report lock bench bench-cluster scale clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ name[NR] = $$1; text[NR] = $$2; if (length($$1) > width) width = length($$1) } \
	  END { for (n = 1; n <= NR; n++) printf "%-" width "s  %s\n", name[n], text[n] }'

install: $(INSTALLED) $(TEST_DATA) ## Install everything into .venv, and what the tests read

$(INSTALLED): pyproject.toml requirements.lock client/notebook_runner/_version.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing the packages of requirements.lock (some minutes)"
	@$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	@echo "Installing notebook-runner"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Notebooks of other projects' test suites. Their metadata is read with what is installed, so that nothing is built.
$(TEST_DATA): tests/data.lock tests/support/public_notebooks.py | $(INSTALLED)
	@echo "Downloading the notebooks that the tests read (tests/data.lock)"
	@rm -rf $(@D)
	@$(BIN)/pip download --quiet --no-deps --no-build-isolation --no-binary nbclient,nbconvert --require-hashes \
	  --requirement tests/data.lock --dest $(@D)/downloads || { echo >&2 \
	  "Cannot download the distributions in tests/data.lock. Run make install again with access to a package index."; exit 1; }
	@$(BIN)/python -m tests.support.public_notebooks
	@touch $@

demo: $(INSTALLED) ## Run examples/quickstart.ipynb through a server, live in the terminal
	@$(BIN)/python examples/demo.py

serve: $(INSTALLED) ## Start the server on its defaults
	$(BIN)/notebook-runner-server --notebook-root examples --default-notebook quickstart.ipynb

dev: $(INSTALLED) ## Start the server, and again on every change of a source file
	$(BIN)/watchfiles --filter python '$(BIN)/notebook-runner-server --log-format console --drain-timeout 2 --notebook-root examples --default-notebook quickstart.ipynb' client server

# The tests of one module share its servers, so a module stays in one process.
PARALLEL ?= -n 2 --dist loadfile
PYTEST := $(BIN)/pytest
# What a test is, is its marker (pyproject.toml, tests/conftest.py).
PROMISES := unit or integration or e2e
test: install ## Run the unit tests, and each promise through a real server
	$(PYTEST) $(PARALLEL) -m "$(PROMISES)"

test-unit: install ## Run the tests that start no server
	$(PYTEST) $(PARALLEL) -m unit

faults: install ## Run the tests that kill, starve, flood or attack a server, and then those under load
	$(PYTEST) $(PARALLEL) -m "fault or long"
	$(PYTEST) -m load

cold: install ## Run the tests of whole runs again, without warm kernels
	NOTEBOOK_RUNNER_WARM_KERNELS=none $(PYTEST) $(PARALLEL) -m "whole_run and not long"

test-all: test faults cold cluster container ## Run all tests, on a Dask cluster and in containers too

coverage: install ## Run the tests of `make test`, and print the lines and branches that none of them takes
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL) -m "$(PROMISES)"; status=$$?; \
	$(BIN)/coverage combine --quiet; $(BIN)/coverage report; exit $$status

mutation: install ## Change one thing at a time in what only computes, and print which changes no test notices
	$(BIN)/python -m checks.mutation

# They wait more than they work.
CLUSTER := $(PYTEST) -n 3 --dist loadfile
ON_CLUSTER := $(PYTEST) $(PARALLEL) --executor dask
cluster: install ## Run the tests of a Dask cluster, and those of the guarantees once more on one
	$(CLUSTER) -m cluster
	$(ON_CLUSTER) -m guarantee

cluster-full: install ## Run all tests of a cluster, of whole runs, and of faults, on a Dask cluster
	$(CLUSTER) -m "cluster or cluster_long"
	$(ON_CLUSTER) -m "whole_run or fault"

container: install ## Build the image, start the manifests, and test both (needs podman and kubectl)
	$(BIN)/pytest tests/container

ROUNDS ?= 500
SEED ?= 0
chaos: install ## Kill what a run needs, fill disks, make file operations fail and damage state folders at random, ROUNDS rounds each (SEED=0: a new one)
	CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(SEED) DAMAGE_ROUNDS=$(ROUNDS) DAMAGE_SEED=$(SEED) FULL_DISK_ROUNDS=$(ROUNDS) FULL_DISK_SEED=$(SEED) \
	  $(BIN)/pytest -s -o faulthandler_timeout=0 tests/faults/test_chaos.py tests/cluster/test_cluster_chaos.py tests/faults/test_damaged_state.py tests/faults/test_full_disk.py tests/faults/test_io_faults.py

RUNS ?= 1000
STREAMS ?= 2000
soak: install ## RUNS runs in a row, and STREAMS streams opened and dropped: nothing grows
	SOAK_RUNS=$(RUNS) SOAK_STREAMS=$(STREAMS) $(BIN)/pytest -s -o faulthandler_timeout=0 tests/faults/test_soak.py

CONNECTIONS ?= 2000
ATTACK_SECONDS ?= 10
attack: install ## Flood a server on loopback: CONNECTIONS connections, ATTACK_SECONDS for each kind of flood
	ATTACK_CONNECTIONS=$(CONNECTIONS) ATTACK_SECONDS=$(ATTACK_SECONDS) ATTACK_CALL_SECONDS=1 $(BIN)/pytest -s tests/security/test_floods.py tests/security/test_slow_readers.py

plain: install ## Run the tests of security as an ordinary user, also where root runs make
	$(BIN)/python -m tests.as_nobody $(BIN)/pytest -p no:cacheprovider tests/security

check: $(INSTALLED) ## Run every check that is not a test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m checks.lint_ignores
	$(BIN)/python -m checks.repository_paths
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against proto/contract.binpb
	$(MAKE) --no-print-directory generate OUT=$(VENV)/generated
	diff -r -x __init__.py -x __pycache__ $(VENV)/generated/notebook_runner/v1 client/notebook_runner/v1
	$(MAKE) --no-print-directory docs

hooks: $(INSTALLED) ## Run the fast checks before each commit (pre-commit)
	$(BIN)/pre-commit install

format: $(INSTALLED) ## Format sources and contract
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/buf format --write

$(GENERATE_VENV)/.installed: requirements-generate.lock
	$(PYTHON) -m venv $(GENERATE_VENV)
	$(GENERATE_VENV)/bin/pip install --quiet --require-hashes --requirement requirements-generate.lock
	@touch $@

OUT ?= client
generate: $(GENERATE_VENV)/.installed ## Generate client/notebook_runner/v1 from the contract
	@mkdir -p $(OUT)
	PATH="$(CURDIR)/$(GENERATE_VENV)/bin:$$PATH" $(GENERATE_VENV)/bin/python -m grpc_tools.protoc -I proto \
	  --python_out=$(OUT) --grpc_python_out=$(OUT) --mypy_out=quiet:$(OUT) --mypy_grpc_out=quiet:$(OUT) $(PROTO)

contract: $(INSTALLED) ## Snapshot the contract as the compatibility baseline
	$(BIN)/buf build --output proto/contract.binpb --exclude-source-info

# It would tell at each build when its theme's maintenance ends.
export NO_MKDOCS_2_WARNING := 1
docs: $(INSTALLED) ## Build the site of docs/ into site/, and check its links
	$(BIN)/python -m mkdocs build --strict --quiet

docs-serve: $(INSTALLED) ## Serve the site on 127.0.0.1:8000, built again when a page or the contract changes
	$(BIN)/python -m mkdocs serve --watch proto --watch client --watch examples

$(RELEASE_VENV)/.installed: requirements-release.lock
	@echo "Creating $(RELEASE_VENV)"
	@$(PYTHON) -m venv $(RELEASE_VENV)
	@$(RELEASE_VENV)/bin/pip install --quiet --require-hashes --requirement requirements-release.lock
	@touch $@

release: $(RELEASE_VENV)/.installed ## Build the last commit into dist/, check it, and try the wheel (see RELEASING.md)
	@.ci/release $(RELEASE_VENV)/bin

ENGINE ?= $(firstword $(shell command -v docker podman))
BUILD ?=
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' client/notebook_runner/_version.py)
IMAGE := notebook-runner:$(VERSION)
image: ## Build the image and the one with numpy, pandas and matplotlib (ENGINE=podman BUILD="… its flags")
	$(ENGINE) build $(BUILD) --tag $(IMAGE) .
	$(ENGINE) build $(BUILD) --target data --tag $(IMAGE)-data .

image-report: image ## Print the layers of both, the newest first, and their sizes
	@for image in $(IMAGE) $(IMAGE)-data; do \
	  echo "$$image"; \
	  $(ENGINE) history --format '{{.Size}}	{{.CreatedBy}}' $$image | grep -v '^0' | cut -c 1-100; \
	done

# What the image has is what the tests ran with.
LOCK_IMAGE := --constraint requirements.lock --universal --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet --output-file image
lock: ## Resolve the locks again (needs uv)
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file requirements.lock
	uv pip compile requirements-generate.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --output-file requirements-generate.lock
	uv pip compile requirements-release.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --quiet --upgrade --output-file requirements-release.lock
	uv pip compile pyproject.toml --extra server --extra uris --extra tracing --extra dask $(LOCK_IMAGE)/server.lock
	uv pip compile image/data.in $(LOCK_IMAGE)/data.lock
	uv pip compile image/build.in $(LOCK_IMAGE)/build.lock

bench: $(INSTALLED) ## Measure this service beside its competitors
	$(BIN)/python -m benchmarks

bench-cluster: $(INSTALLED) ## Measure runs on a Dask cluster of 1 to 8 workers, beside this machine's own
	$(BIN)/python -m benchmarks --only cluster

scale: $(INSTALLED) ## Measure what an item costs where there are few and where there are many
	$(BIN)/python -m benchmarks --only scaling

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(GENERATE_VENV) $(RELEASE_VENV) .mutation .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache demo-output dist site
