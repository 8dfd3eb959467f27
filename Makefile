# Each target does first what it needs; `make run` and `make test` work on a fresh machine.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DB ?= observer.db
WIDE ?= .wide

# The embedded model is too small for a second thread: beside an observer it waits for it more than it gains.
export OMP_NUM_THREADS ?= 1

.PHONY: install run test check bench dashboard

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

run: install ## observe the embedded model on the embedded corpus and print the report
	$(BIN)/observer run --db $(DB) --generate 16

test: install ## all tests; the browser tests need Debian's chromium; a process of the tests takes up to 1.2 GB
	@test -x /usr/bin/chromium || .ci/apt chromium
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

check: install ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## ratios: what the seam and the observer cost, residency against what else there is (3.8 GB in WIDE)
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.residency $(WIDE)

dashboard: install ## look at what was recorded
	$(BIN)/python -m dashboard --db $(DB)
