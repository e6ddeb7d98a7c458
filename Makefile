# Every target sets itself up: it needs Python 3.11 or newer and make, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
unexport PYTHONDONTWRITEBYTECODE  # or each process compiles all that it imports

SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema vendor

PHANTOM ?=  # --phantom TISSUE PEAKS
BIDS ?= ../shared/data/bids_real
PEERS := .venv-peers

.PHONY: container-check demo test test-unit test-browser test-cluster test-slow lint types docs package benchmark benchmark-peers clean

demo: $(VENV)/.installed
	$(BIN)/eddymotion --demo demo

test: $(VENV)/.installed-test
	$(PYTEST) --numprocesses auto --dist loadfile

UNIT := $(addprefix tests/test_,$(addsuffix .py,architecture dataset files geometry gradients \
	kernels masking models resampling simulation transform_files))
test-unit: $(VENV)/.installed-test  # seconds; no engine, no browser, no cluster
	$(PYTEST) $(UNIT)

test-slow: $(VENV)/.installed-test
	$(PYTEST) -m slow

test-browser: $(VENV)/.installed-test  # Debian's chromium on the PATH
	$(PYTEST) -m browser

test-cluster: $(VENV)/.installed-test  # Debian; root or sudo for the packages
	tests/cluster/slurm install
	tests/cluster/slurm run $(PYTEST) -m cluster tests/cluster

container-check: $(VENV)/.installed-test  # Debian, root: docker/check install brings the programs
	docker/check

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(SCHEMA).github-workflows .github/workflows/*.yml
	$(SCHEMA).github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/idea.yml
	$(SCHEMA).dependabot .github/dependabot.yml
	$(SCHEMA).citation-file-format CITATION.cff
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/hadolint docker/Dockerfile

types: $(VENV)/.installed-test
	$(BIN)/mypy

benchmark: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.accuracy
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.weak

benchmark-peers: $(VENV)/.installed-test $(PEERS)/.installed
	$(BIN)/python -m benchmarks.peers --check
	$(BIN)/python -m benchmarks.peers $(PHANTOM)
	$(BIN)/python -m benchmarks.cieslak $(PHANTOM)
	$(BIN)/python -m benchmarks.real $(BIDS)
	$(BIN)/python -m benchmarks.replay $(BIDS)
	$(BIN)/python -m benchmarks.polarities $(BIDS)
	$(BIN)/python -m benchmarks.weak

$(PEERS)/.installed: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -r $<
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; try: make PYTHON=python3.12 $(MAKECMDGOALS)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python  # in one call: the other's packages, too
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test,bench]'
	touch $(VENV)/.installed $@

docs: $(VENV)/.installed-docs  # no warning passes; examples run; then all links and anchors
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs docs/_build/html
	$(BIN)/python docs/_ext/check_links.py docs/_build/html

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[docs]'
	touch $@

OF_CHECKOUT := $(addprefix --ignore tests/test_,architecture.py docs.py packaging.py)
package: $(VENV)/.installed  # the wheel, from wheels alone, in an environment of its own
	$(BIN)/python -m pip install --quiet build
	rm -rf dist build/package
	$(BIN)/python -m build --outdir dist .
	mkdir -p build/package
	tar --extract --gzip --file dist/*.tar.gz --directory build/package --strip-components 1
	rm -r build/package/eddymotion build/package/workflows
	$(PYTHON) -m venv build/package/venv
	build/package/venv/bin/python -m pip install --quiet --only-binary :all: dist/*.whl
	build/package/venv/bin/python -m pip check
	build/package/venv/bin/eddymotion --version
	build/package/venv/bin/python -m pip install --quiet --only-binary :all: \
		"$$(echo dist/*.whl)[test,bench]"
	cd build/package && venv/bin/python -m pytest --numprocesses auto --dist loadfile $(OF_CHECKOUT)

clean:
	rm -rf $(VENV) $(PEERS) demo build dist *.egg-info docs/_build docs/auto_gallery \
		docs/reference/generated docs/sg_execution_times.rst
