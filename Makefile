# make demo     set up what the demo needs and run it
# make test     set up what the tests need; lint, types, tests
# make setup    only set up, for both
#
# As root, missing Debian packages are installed; otherwise they are named.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
APT    := packaging/apt-install

.PHONY: demo test setup lint check clean

demo: $(VENV)/.demo
	$(BIN)/hvbridge demo

test: $(VENV)/.test lint check

setup: $(VENV)/.demo $(VENV)/.test

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(VENV)/.test
	$(BIN)/pytest

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: made anew when the requirements or the package lists change.
$(VENV)/.demo: pyproject.toml packaging/run.packages packaging/demo.packages $(APT)
	$(APT) packaging/run.packages packaging/demo.packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hvbridge needs Python 3.11 or newer: make PYTHON=/path/to/python3 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e .
	touch $@

# Where the guest cannot be built (another distribution, no network), its tests say so.
$(VENV)/.test: $(VENV)/.demo packaging/test.packages packaging/guest.packages
	$(APT) packaging/run.packages packaging/demo.packages packaging/test.packages packaging/guest.packages
	$(BIN)/pip install -q --disable-pip-version-check -e '.[test]'
	-$(PYTHON) examples/qemu/guest/build.py
	touch $@
