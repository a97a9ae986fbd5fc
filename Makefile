# make demo    the whole pipeline on made-up data, on the CPU, in minutes
# make test    all checks and tests
# make torture   kills trainings at random moments and compares what they end with (KILLS=200 SEED=1)
# make bench   all benchmarks at a small size, into results/bench.json
# make docs    what is generated from the settings: config/schema.json and the table in config/README.md
# make clean   removes the demo's results, never those of another project

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && command -v "$$p" && break; done)
BIN := .venv/bin

.PHONY: demo test torture bench docs clean

# The stamp is newer than the lock as long as the lock has not changed.
.venv/installed: requirements.lock
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/pip || "$(PYTHON)" -m venv --clear .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet -r requirements.lock
	@touch $@

demo: .venv/installed
	$(BIN)/snakemake train_full evaluate_full report
	@echo
	@echo "The demo is done. Look at:"
	@echo "  results/demo/runs/full/report/summary.md      what was learned, with figures beside it"
	@echo "  results/demo/runs/full/evaluation.tsv         each metric beside its baseline"
	@echo "  results/demo/runs/full/model/                 the trained model"
	@echo "  results/demo/datasets/summary.tsv             the data"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile rules
	$(BIN)/snakemake --lint
	$(BIN)/pytest

KILLS ?= 200
SEED ?= 1
torture: .venv/installed
	@$(BIN)/python -m tests.torture --kills $(KILLS) --seed $(SEED)

bench: .venv/installed
	@PYTHONPATH=. $(BIN)/python benchmarks/suite.py

docs: .venv/installed
	$(BIN)/python -m lucavirus.config_docs

clean:
	rm -rf results/demo work/demo
