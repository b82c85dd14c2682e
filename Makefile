# make demo   synthetic volumes with masks, from the shipped weights, into demo/
# make test   the quick tests;  make test-slow   the others;  make test-label   those on MONAI Label;
#             make test-mlflow   the one on MLflow
#
# Settings:  PYTHON=python3.12  another interpreter for the environment
#            VENV=.venv         where the environment is made
#            AUDIT_VENV=.venv-audit   where the tools of `make sbom` and `make audit` are
#            FUZZ_SECONDS=600   how long `make fuzz` takes
#            LABEL_VENV=.venv-label   where MONAI Label is put on top of it
#            MLFLOW_VENV=.venv-mlflow   where MLflow is put on top of it
#            PIP_ARGS=...       more options for pip install, for instance another package index
#            PYTEST_ARGS=...    more options for pytest, for instance -k insertion, or -n 0 for one process

PYTHON ?= python3
VENV ?= .venv
LABEL_VENV ?= .venv-label
MLFLOW_VENV ?= .venv-mlflow
AUDIT_VENV ?= .venv-audit
FUZZ_SECONDS ?= 600
# Tests run in a process for each core; tests/dealing.py says which of them go together.
SPREAD := -n auto --maxprocesses 4 --dist loadfile
LABEL := monailabel==0.8.5
DEMO ?= demo
PIP_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
DECLARED := setup.cfg setup.py pyproject.toml constraints.txt

# Plots need no screen, and MONAI's and others' libraries need not report their use.
export MPLBACKEND := Agg
export DO_NOT_TRACK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo docs test test-slow test-label test-mlflow fuzz sbom audit lint typecheck format wheel clean distclean

help:
	@echo "make demo       4 pairs from each bundle and one insertion, into $(DEMO)/"
	@echo "make test       lint and the quick tests"
	@echo "make test-slow  the slow and the integration tests"
	@echo "make test-label the tests on a MONAI Label server, in $(LABEL_VENV)/"
	@echo "make test-mlflow the test of a training in MLflow, in $(MLFLOW_VENV)/"
	@echo "make lint       ruff: rules and format        make format     let ruff put them right"
	@echo "make typecheck  mypy on medvae3d/             make wheel      build into dist/"
	@echo "make docs       the site, into docs/_build/"
	@echo "make sbom       sbom.json: all installed packages      make audit      known vulnerabilities"
	@echo "make fuzz       readers of text on random input, for $(FUZZ_SECONDS) s"
	@echo "make clean      delete caches and the demo    make distclean  delete $(VENV)/ as well"

install: $(VENV)/.installed

# A half-made environment has no stamp, so that the next call mends it.
$(VENV)/.installed: $(DECLARED)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "medvae3d needs Python 3.10 to 3.13; $(PYTHON) is `$(PYTHON) --version 2>&1`." >&2; \
	  echo "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make a virtual environment: its venv or ensurepip module is missing." >&2; \
	  echo "On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[test,dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/medvae3d demo --out $(DEMO)

# One thread: tests work on small tensors, where a second thread costs more than it gives, and on a
# busy machine ten times as much.
test test-slow: export OMP_NUM_THREADS ?= 1
test: lint
	$(BIN)/python -m pytest -m "not slow and not integration" $(SPREAD) $(PYTEST_ARGS)

test-slow: $(VENV)/.installed-dev $(VENV)/.installed-nnunet
	$(BIN)/python -m pytest -m "slow or integration" $(SPREAD) $(PYTEST_ARGS)

# An environment that sees the packages of the first one below its own.
define on-top
$(BIN)/python -m venv --clear $(1)
@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % \
  sysconfig.get_path("purelib"))' > "$$($(1)/bin/python -c \
  'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
endef

# nnU-Net's check of its data sets, for the test of an export. It is not put among the packages of the
# environment, as nnU-Net asks for another 35 of them and for torchvision.
$(VENV)/.installed-nnunet: $(VENV)/.installed-dev requirements-nnunet.txt
	rm -rf $(VENV)/nnunet
	$(INSTALL) --no-deps --no-compile --target $(VENV)/nnunet -r requirements-nnunet.txt
	@touch $@

# MONAI Label on top of the environment, whose packages it sees, so that it costs 0.2 GB and no
# second torch, and the environment itself stays without it.
test-label: export OMP_NUM_THREADS ?= 1
test-label: $(LABEL_VENV)/.installed
	$(LABEL_VENV)/bin/python -m pytest -m label tests/label $(PYTEST_ARGS)

$(LABEL_VENV)/.installed: $(VENV)/.installed-dev requirements-label.txt
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] > (3, 12))' || { \
	  echo "MONAI Label 0.8.5 does not run on `$(BIN)/python --version 2>&1`." >&2; \
	  echo "Take 3.10 to 3.12: make distclean, then make PYTHON=python3.11 test-label" >&2; exit 1; }
	$(call on-top,$(LABEL_VENV))
	$(LABEL_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt -r requirements-label.txt
	$(LABEL_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) --no-deps $(LABEL)
	@touch $@

# MLflow on top of the environment: in it, MONAI would import it in each process of every test.
test-mlflow: export OMP_NUM_THREADS ?= 1
test-mlflow: $(MLFLOW_VENV)/.installed
	$(MLFLOW_VENV)/bin/python -c 'import mlflow, sqlalchemy, alembic'
	$(MLFLOW_VENV)/bin/python -m pytest tests/apps/test_tracking.py $(PYTEST_ARGS)

$(MLFLOW_VENV)/.installed: $(VENV)/.installed-dev requirements-mlflow.txt
	$(call on-top,$(MLFLOW_VENV))
	$(MLFLOW_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  -c constraints.txt -r requirements-mlflow.txt
	@touch $@

# Random input for the readers of text; what crashes one is kept in build/fuzz.
fuzz: export OMP_NUM_THREADS ?= 1
fuzz: $(VENV)/.installed-dev
	$(INSTALL) -e '.[fuzz]'
	mkdir -p build/fuzz/corpus
	$(BIN)/python tests/fuzz/make_seeds.py build/fuzz/seeds
	$(BIN)/python tests/fuzz/fuzz_readers.py -max_total_time=$(FUZZ_SECONDS) -max_len=4096 \
	  -artifact_prefix=build/fuzz/ build/fuzz/corpus build/fuzz/seeds

# The tools have an environment of their own, so that they are not in the bill.
sbom: $(VENV)/.installed $(AUDIT_VENV)/.installed
	$(AUDIT_VENV)/bin/cyclonedx-py environment  \
	  --output-reproducible -o sbom.json $(BIN)/python

# Needs the network: it asks about the direct dependencies, at the versions that are pinned.
audit: $(VENV)/.installed $(AUDIT_VENV)/.installed
	$(BIN)/python tests/direct_dependencies.py > $(AUDIT_VENV)/requirements.txt
	$(AUDIT_VENV)/bin/pip-audit --disable-pip --no-deps -r $(AUDIT_VENV)/requirements.txt

$(AUDIT_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) \
	  'pip-audit>=2.9,<3' 'cyclonedx-bom>=7,<8'
	@touch $@

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

# The site, in docs/_build: warnings are errors.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs docs/_build

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(INSTALL) -e '.[docs]'
	@touch $@

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build

clean:
	rm -rf build dist docs/_build docs/_generated *.egg-info .mypy_cache .pytest_cache .ruff_cache $(DEMO)
	find medvae3d tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(LABEL_VENV) $(MLFLOW_VENV) $(AUDIT_VENV)
