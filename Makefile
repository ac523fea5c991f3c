# make demo   see it work on three photographs        make test   run the tests
# make check  the whole gate, before every commit     make bench  the speeds, as ratios
# make clean  remove what make made                   make conformance  docs/conformance.md
# make bench BENCH="--only family --json FILE": options of benchmarks/bench.py
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA := $(wildcard ../shared/data)
ifneq ($(DATA),)
export CAMLUCIDA_DATA ?= $(abspath $(DATA))
endif
PIP := $(BIN)/python -m pip --disable-pip-version-check
PHOTOS = $$($(BIN)/python -c "import pathlib, skimage.data as d; p = pathlib.Path(d.__file__).parent; print(*(p / n for n in ('chelsea.png', 'coffee.png', 'rocket.jpg')))")

.PHONY: demo test check bench conformance clean

demo: $(VENV)/installed
	$(BIN)/camlucida localize $(PHOTOS) --out demo --overwrite

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

bench: $(VENV)/installed-peers
	$(BIN)/python benchmarks/bench.py $(BENCH)
	$(BIN)/python benchmarks/occlusion.py --every 4

conformance: $(VENV)/installed-peers
	$(BIN)/python benchmarks/conformance.py

$(VENV)/made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "camlucida needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/made pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/installed $@

$(VENV)/installed-peers: $(VENV)/installed-dev
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,peers]'
	touch $@

clean:
	rm -rf $(VENV) demo
