# Every target sets itself up: a bare machine needs Python >= 3.11, pip and make.
PYTHON ?= python3
BIN    := .venv/bin
RUNS   ?= runs
PORT   ?= 7860
# or music, video, or edit
MODALITY ?= image

.PHONY: install demo check test app clean

install: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/workbench demo --modality $(MODALITY) --runs $(RUNS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	$(BIN)/python -m pytest

app: install
	$(BIN)/workbench app --port $(PORT)

clean:
	rm -rf .venv build *.egg-info
