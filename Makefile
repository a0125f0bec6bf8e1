# Everything from a fresh machine: Python 3.11 or 3.12, make, a package index (and a C++ compiler for the tests).
#   make sweep   the main job: GPTQ and AWQ at 3, 4 and 8 bits on the embedded model
#   make test    the tests; make test-slow, make test-cluster (Ray, Slurm, S3): the others
#   make ui      MLflow's UI on the results
#   make docs    the documentation as a site, in site/
PYTHON ?= $(shell command -v python3.12 >/dev/null 2>&1 && python3.12 -c '' 2>/dev/null && echo python3.12 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Nothing is compiled to bytecode ahead: most modules of torch, transformers and MLflow are never imported,
# and those that are get compiled then.
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
# llama.cpp, which several of the packages want, is compiled: no more of it than qsweep calls.
COMPILE = CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	CMAKE_ARGS="-DCMAKE_PROJECT_llama_cpp_INCLUDE='$(CURDIR)/tools/llama_cpp.cmake' $(CMAKE_ARGS)"
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Test files run side by side, each file's tests in one process, which has its share of the cores.
AT_ONCE ?= --numprocesses logical --maxprocesses 4 --dist loadfile

.PHONY: sweep test test-slow test-cluster lint docs ui install gguf environment clean

sweep: $(VENV)/.base
	$(BIN)/python -m qsweep -m quant=gptq,awq bits=3,4,8

test: $(VENV)/.base $(VENV)/.test $(VENV)/.gguf
	$(BIN)/python -m pytest $(AT_ONCE)

test-slow: $(VENV)/.base $(VENV)/.test $(VENV)/.gguf
	$(BIN)/python -m pytest -m slow $(AT_ONCE)

# Ray's and Slurm's own daemons, and an S3 server, all on loopback; what is not installed is skipped.
test-cluster: $(VENV)/.base $(VENV)/.test
	$(BIN)/python -m pytest -m 'cluster and not slow'

lint: $(VENV)/.base $(VENV)/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

# Strict: a dead link or a name that a page takes from a docstring in vain is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

ui: $(VENV)/.base
	$(BIN)/python -m qsweep ui

install: $(VENV)/.base
# All that the targets above install, and nothing else.
environment: $(VENV)/.base $(VENV)/.test $(VENV)/.docs $(VENV)/.gguf
gguf: $(VENV)/.gguf

# torch comes first and alone, so that the build for this machine's index is taken as it is.
$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "qsweep needs Python 3.11 or 3.12: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(COMPILE) $(PIP) --editable '.[gptqmodel,bitsandbytes,torchao,hqq,test,smollm2,tasks,postgresql,ray,slurm,s3,cluster]'
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(PIP) --editable '.[docs]'
	touch $@

# llama.cpp is compiled (a minute and a half on two cores); only GGUF needs it.
$(VENV)/.gguf: $(VENV)/.base
	$(COMPILE) $(PIP) --editable '.[gguf]'
	$(BIN)/python -m qsweep env create llama.cpp
	touch $@

clean:
	rm -rf $(VENV)
