# Every target sets up what it needs; `make` alone lists them.
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PYTHON ?= python3
WORKERS ?= 3
OLDEST := .venv-oldest
EMPTY  := .venv-dist
EXTRAS := $(shell sed -n '/^\[project.optional-dependencies\]/,/^\[dep/s/^\([a-z0-9]*\) = .*/\1/p' pyproject.toml)
# What a file of somebody else's may do.
STRANGERS := $(addprefix tests/unit/test_,strangers.py reading.py detector_file.py deploy.py)

# The tests start hundreds of processes; compiling every module anew in each would take longer than the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart docs test test-oldest dist extras lint lock study-cifar10 study-imagenet-sample study-ssod benchmark browser-example notebooks clean

help:
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 24

# uv is the only thing pip installs; uv then installs exactly the locked files, hashes checked.
$(READY): requirements/dev.txt requirements/uv.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.txt requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.venv: $(READY)  ## set up .venv with the pinned packages

quickstart: $(READY)  ## run the main job on embedded data: a table and quickstart/report.html
	$(BIN)/nescio quickstart --out quickstart

test: $(READY)  ## lint, types, import arrows and every test
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -n $(WORKERS) tests

docs: $(READY)  ## build the pages into site/: strictly, offline, every code block run
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebooks: $(READY)  ## run the notebooks of the guides and write them to build/notebooks
	$(BIN)/python docs/_build/notebooks.py build/notebooks

test-oldest: $(READY)  ## the security tests on the oldest versions that pyproject.toml allows
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --resolution lowest-direct --python-version 3.11 \
	    --no-header --no-annotate -o $(OLDEST)/oldest.txt --quiet
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python -r $(OLDEST)/oldest.txt
	$(BIN)/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps --no-build-isolation -e .
	$(OLDEST)/bin/pytest $(STRANGERS)

dist: $(READY)  ## build the sdist and the wheel, and try the wheel in an empty environment
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(EMPTY)
	$(BIN)/uv pip install --quiet --python $(EMPTY)/bin/python -c requirements/dev.txt dist/*.whl scikit-learn  # for the README's lines
	$(BIN)/python tests/wheel.py $(EMPTY)/bin/python

extras: $(READY)  ## resolve the extras, each alone and all together
	@for extra in $(EXTRAS); do \
	    $(BIN)/uv pip compile pyproject.toml --extra $$extra --universal --python-version 3.11 --quiet > /dev/null \
	        && echo "$$extra" || exit 1; \
	done
	@$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --quiet > /dev/null && echo all

lint: $(READY)  ## ruff, mypy and the import arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(READY)  ## resolve pyproject.toml again into requirements/dev.txt
	$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	    --generate-hashes --no-header --no-annotate --upgrade -o requirements/dev.txt --quiet

study-cifar10: $(READY)  ## the reference table on CIFAR-10 and a DenseNet (NESCIO_SHARED: the data folder)
	$(BIN)/python studies/cifar10.py

study-imagenet-sample: $(READY)  ## EfficientNet-Lite0 on a sample of ImageNet, with one training image a class
	$(BIN)/python studies/imagenet_sample.py

study-ssod: $(READY)  ## SSOD against cross entropy, three seeds on a small network; studies/ssod.py has more
	$(BIN)/python studies/ssod.py cifar10

benchmark: $(READY)  ## speed ratios (peer.py, imagenet_scale.py, training.py and costs.py by hand)
	$(BIN)/python benchmarks/one_pass.py
	$(BIN)/python benchmarks/from_bank.py
	$(BIN)/python benchmarks/metrics.py

browser-example:  ## fetch onnxruntime-web for examples/browser (needs npm)
	npm --prefix examples/browser ci --ignore-scripts --no-audit --no-fund

clean:  ## remove what the targets made
	rm -rf $(VENV) $(OLDEST) $(EMPTY) quickstart results build dist site
