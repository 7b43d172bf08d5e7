# Every target installs what it needs into .venv first, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: install demo quick test test-all lint

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# Certifies a small trained network that comes with the repository.
demo: install
	$(RUN) -m examples.digits.demo

# Everything but what is marked slow.
quick: install
	$(RUN) -m pytest -m 'not slow'

# With CI=true the slow tests too.
test: install
	$(RUN) -m pytest

test-all: install
	CI=true $(RUN) -m pytest

lint: install
	$(RUN) -m ruff check .
