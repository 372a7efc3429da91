# make setup: .venv with everything; make demo: the whole method on drawn scenes; make test: setup, then every test;
# make soak: what takes long: inputs drawn at random, every guard taken away in turn, faults at every point of a run (needs strace);
# make prep: what to run before a commit; make notebooks: every notebook in a bare clone;
# make hooks: once per clone, merge driver and notebook cleaning for git.
PY := .venv/bin/python
STAMP := .venv/.ready

setup: $(STAMP)

$(STAMP): settings.ini setup.py
	@test -x $(PY) || { echo "making .venv"; python3 -m venv .venv; }
	@echo "installing ccd, torch and the tools: two minutes or more, 6.5 GB of disk"
	@$(PY) -m pip install --quiet --upgrade pip
	@$(PY) -m pip install --quiet --editable ".[dev]"
	@touch $@
	@echo "ready: source .venv/bin/activate"

demo: setup
	@.venv/bin/ccd demo

test: setup
	@CCD_CACHE=none OMP_NUM_THREADS=1 timeout 1200 .venv/bin/nbdev_test --n_workers 2 --timing
	@.venv/bin/pytest

soak: setup
	@HYPOTHESIS_PROFILE=soak $(PY) -m pytest -q --timeout 3600 tests/test_fuzz.py
	@$(PY) tests/guards.py
	@$(PY) tests/faults.py

notebooks: setup
	@tests/notebooks.sh

prep: setup
	@.venv/bin/ruff check --silent --exit-zero --fix --select I nbs tests
	@.venv/bin/nbdev_clean
	@.venv/bin/nbdev_export
	@$(PY) tests/readme.py
	@.venv/bin/ruff check

hooks: setup
	@.venv/bin/nbdev_install_hooks

.PHONY: setup demo test soak notebooks prep hooks
