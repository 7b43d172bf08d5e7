# Every target installs what it needs into .venv first, once.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: install demo quick test test-all battery lint

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# The whole loop on the digits that come with the package: trains, prunes, exports and certifies; runs/digits/report.html shows it.
demo: install
	$(RUN) -m certprune.cli loop --preset digits

# Everything but what is marked slow.
quick: install
	$(RUN) -m pytest -m 'not slow'

# With CI=true the slow tests too.
test: install
	$(RUN) -m pytest

test-all: install
	CI=true $(RUN) -m pytest

# More than 20,000 cases of soundness on all cores; Ctrl-C keeps what is done, and the same command goes on.
battery: install
	$(RUN) -m benchmarks.battery

lint: install
	$(RUN) -m ruff check .
