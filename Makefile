# make run    start a server, installed into .venv        make test   everything that is checked, and the tests
# make bench  the load generator                          make clean  remove .venv and what the tools left behind
# make regress  compare the instructions of the hot paths with the baseline; needs valgrind
#
# PYTHON=python3.12   the Python to make .venv with (3.11 or later)
# ARGS="..."          for run, bench and regress: what to add to the command, as in ARGS="127.0.0.1:9000 --shards 1"
# TESTS="..."         for test: what to give to pytest, as in TESTS="tests/test_names.py -k tag"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# compat puts the checkout itself on Python's path. Otherwise, in the directory above a checkout named restq, that
# checkout would be found first, as a package with nothing in it.
EDITABLE := --config-settings editable_mode=compat --editable

.PHONY: help run test bench regress clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed -n 1,7p

run: $(VENV)/installed
	@echo 'To have the command restq in another shell:  . $(abspath $(BIN))/activate'
	@exec $(BIN)/restq web $(ARGS)

test: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict restq bench
	$(BIN)/python -m pytest $(TESTS)

bench: $(VENV)/installed
	@exec $(BIN)/python -m bench.load $(ARGS)

regress: $(VENV)/installed-for-tests
	@exec $(BIN)/python -m bench.regress $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find restq tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The installs are editable: a changed source needs no new one.
$(VENV)/installed: $(VENV)/made setup.py pyproject.toml Makefile
	$(PIP) install --quiet $(EDITABLE) .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/made setup.py pyproject.toml Makefile
	$(PIP) install --quiet $(EDITABLE) '.[speed,test]'
	@touch $@ $(VENV)/installed

$(VENV)/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'restq needs Python 3.11 or later, and $(PYTHON) is not. If you have one, name it: make PYTHON=python3.12' >&2; \
	    exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo '$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt-get install python3-venv' >&2; \
	    exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
