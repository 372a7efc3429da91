# make setup: .venv with everything; make demo: the whole method on drawn scenes; make test: setup, then every test; make prep: what to run before a commit.
PY := .venv/bin/python
STAMP := .venv/.ready

setup: $(STAMP)

$(STAMP): settings.ini setup.py
	test -x $(PY) || python3 -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(PY) -m pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	.venv/bin/ccd demo

test: setup
	CCD_CACHE=none OMP_NUM_THREADS=1 timeout 1200 .venv/bin/nbdev_test --n_workers 2 --timing
	.venv/bin/pytest

prep: setup
	.venv/bin/nbdev_clean
	.venv/bin/nbdev_export
	$(PY) tests/readme.py

hooks: setup
	.venv/bin/nbdev_install_hooks

.PHONY: setup demo test prep hooks
