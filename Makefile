# Two commands on a fresh machine: `make demo` and `make test`. Both install first, from the lock
# files, into .venv; nothing else is needed but Python 3.11, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
TORCH  := $(shell sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml)

.PHONY: demo test fast faults attack mutants lint format bench bench-stage bench-train bench-embed bench-query bench-nightly bench-starts bench-drift bench-explore bench-capacity bench-core screenshots machine lock wheel clean help

help:            ## this list
	@grep -hE '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/.runtime   ## two nights on the sample that ships with the project
	$(BIN)/latentlake demo

test: $(VENV)/.dev machine ## every test; many of them wait for processes, so three files at a time
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

fast: $(VENV)/.dev       ## the tests that need no server, no Ray and no training
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit -m "not slow" -n 2

screenshots: $(VENV)/.dev machine ## the page's pictures in docs/pictures, by a real browser
	LATENTLAKE_SCREENSHOTS=docs/pictures $(BIN)/python -m pytest \
		tests/integration/test_browser.py tests/integration/test_report_browser.py \
		tests/integration/test_explore_browser.py

faults: $(VENV)/.dev     ## kill, fail storage and simulate nights, many rounds
	LATENTLAKE_FAULT_ROUNDS=25 $(BIN)/python -m pytest tests/faults \
		tests/integration/test_compile.py tests/unit/vae_core/stats/test_two_sample.py \
		tests/unit/jobs/drift/test_decision.py tests/unit/jobs/drift/test_drift_level.py --timeout 7200

attack: $(VENV)/.dev     ## what a stranger may try: web pages, folders, files, 2,000 changed lakes; 20 minutes
	LATENTLAKE_FAULT_ROUNDS=2 LATENTLAKE_MUTATIONS=2000 $(BIN)/python -m pytest -n 2 \
		tests/integration/test_strangers.py tests/integration/test_browser.py \
		tests/integration/test_working_directory.py tests/integration/test_terminal.py \
		tests/faults/test_hostile_lakes.py tests/unit/jobs/test_hostile_lake.py tests/unit/jobs/test_hostile_bundle.py \
		tests/unit/jobs/test_hostile.py tests/unit/jobs/lake/test_uri.py tests/unit/flows/test_login.py

mutants: $(VENV)/.dev    ## 40 small changes of the code: does a unit test fail for each? long
	$(BIN)/python -u -m tests.mutants

lint: $(VENV)/.dev       ## ruff, pyright, the floors of the house, docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache
	$(BIN)/pydoclint vae_core jobs flows

format: $(VENV)/.dev     ## let ruff write what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev      ## the demo's numbers in docs/benchmarks.md
	$(BIN)/python tests/benchmarks/bench_demo.py

bench-stage: $(VENV)/.dev ## staging against a bare loop and Ray Data; memory; the idle rerun
	$(BIN)/python -m tests.benchmarks.bench_stage

bench-train: $(VENV)/.dev ## training against a bare loop, Ray's template and pythae; the loader
	$(BIN)/python -m tests.benchmarks.bench_train

bench-embed: $(VENV)/.dev ## embedding against a bare loop and Ray Data; each score
	$(BIN)/python -m tests.benchmarks.bench_embed

bench-query: $(VENV)/.dev ## queries of a million embeddings, on disk and on S3
	$(BIN)/python -m tests.benchmarks.bench_query

bench-nightly: $(VENV)/.dev ## what orchestration costs: an idle night, the demo's first
	$(BIN)/python -m tests.benchmarks.bench_nightly

bench-starts: $(VENV)/.dev ## what the start of jobs costs: forked workers against Ray's own
	$(BIN)/python -m tests.benchmarks.bench_starts

bench-drift: $(VENV)/.dev ## what a judgement of drift costs, and what it finds
	$(BIN)/python -m tests.benchmarks.bench_drift

bench-explore: $(VENV)/.dev ## latentlake explore over a million embeddings
	$(BIN)/python -m tests.benchmarks.bench_explore

bench-capacity: $(VENV)/.dev ## what 10^5 units cost a driver, and S3; an hour or more
	$(BIN)/python -m tests.benchmarks.bench_capacity

bench-core: $(VENV)/.dev ## the core's numbers, hours (SHORT=1: minutes); fetches real data
	$(BIN)/python -m tests.benchmarks.core $(if $(SHORT),--short)

# torch goes in first and without a hash: its CPU and CUDA builds differ in hash and in what they
# bring, and one lock serves both. Everything else is exact and checked.
$(VENV)/.runtime: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentlake needs Python 3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install $(TORCH)
	$(PIP) install --no-deps --require-hashes -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	touch $@

# What a few tests need of the machine itself. Where it cannot be had they skip, and say why.
machine:                 ## a browser, ip and prometheus, for the tests, where apt-get may
	@want=; \
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
		want="chromium chromium-driver"; \
	command -v ip >/dev/null || want="$$want iproute2"; \
	test -n "$$want" || exit 0; \
	if test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null; then \
		echo "machine: some tests skip without" $$want; exit 0; \
	fi; \
	echo "machine: apt-get install" $$want; \
	{ apt-get update -qq; DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $$want; } >/dev/null 2>&1 || \
		echo "machine: that did not work; some tests skip"
	@# Unpacked, not installed: the package would start a server.
	@command -v prometheus >/dev/null || test -d $(VENV)/prometheus || \
		! command -v apt-get >/dev/null || { mkdir -p $(VENV)/unpack && cd $(VENV)/unpack && \
		{ apt-get download -qq prometheus || { apt-get update -qq && \
		apt-get download -qq prometheus; }; } >/dev/null 2>&1 && \
		dpkg -x prometheus_*.deb ../unpacked && mv ../unpacked ../prometheus && \
		rm -r ../unpack; } || echo "machine: prometheus cannot be had; a test skips"

# Writes both lock files anew. torch's CPU build must be the one that is found (PIP_FIND_LINKS),
# else its CUDA packages would be locked, too.
LOCK := $(BIN)/uv pip compile -q --generate-hashes --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-emit-package torch --no-emit-index-url \
	--no-header --no-annotate $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
lock: $(VENV)/.runtime   ## write the lock files anew from pyproject.toml
	$(PIP) install uv==0.13.8
	$(LOCK) pyproject.toml -o requirements.lock
	$(LOCK) pyproject.toml --extra dev -c requirements.lock -o requirements-dev.lock

wheel: $(VENV)/.runtime  ## the project as a wheel in dist/, to bring to a Ray cluster
	rm -rf build  # modules that have moved since would come along
	$(PIP) wheel --no-deps --no-build-isolation -w dist .

clean:                   ## remove the environment and the demo's lake
	rm -rf $(VENV) lake
