# The commands people type. `make demo` and `make test` need nothing but Python 3.11 to 3.14 and make.

SUPPORTED := 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'
# The newest supported one that is there and can make an environment; Debian packs venv apart.
PYTHON ?= $(shell for python in python3.14 python3.13 python3.12 python3.11 python3; do \
  "$$python" -c $(SUPPORTED) 2>/dev/null && echo "$$python" && break; done)
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

# No tool started from here reports to anybody.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DVC_NO_ANALYTICS := true
export HF_HUB_DISABLE_TELEMETRY := 1
export NO_MKDOCS_2_WARNING := 1
export PYTHONWARNINGS ?= ignore::FutureWarning
# Containers often forbid Python to keep what it compiled; then each of a pipeline's many processes starts 6 s later.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-smallest test test-slow test-gpu test-browser fuzz chaos check docs setup setup-gpu lock schema dvc.yaml clean

help:  ## Show this
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

CHANGES :=
# With CHANGES="key=value ..." those values of the preset are others.
demo: setup  ## The whole pipeline on the demo's scenes: environment, flow, leaderboard, report
	@python -m pipeline preset demo $(CHANGES)
	@python -m flows.release --at-once 2

demo-smallest: CHANGES := students=[efficientvit_sam_nano] prepare.source.train=48 prepare.source.validation=8 \
  distill.efficientvit_sam_nano.optimizer.steps=20 distill.efficientvit_sam_nano.optimizer.cooldown_steps=10
demo-smallest: demo  ## The demo with one student and fewer images: minutes on any machine

# Two processes of one thread each: nearly all tests are single-threaded. A file stays in one: it shares costly fixtures
# (marks for groups would do it by fixture, but pytest-xdist 3.8 does not see them with pytest 9.2).
test: setup  ## The default test suite
	OMP_NUM_THREADS=1 python -m pytest -m "not slow and not gpu and not browser" -n 2 --dist loadfile

test-slow: setup  ## The tests that take minutes
	python -m pytest -m slow

# Without jaxtyping's checks of shapes, which torch.compile cannot follow.
UNCHECKED := --strict-markers --strict-config --import-mode=importlib
test-gpu: setup-gpu  ## The tests that need a GPU, TensorRT among them
	python -m pytest -m gpu -o addopts="$(UNCHECKED)"

test-browser: setup  ## The report in a real browser: needs chromium and chromium-driver (Debian's names)
	python -m pytest -m browser tests/compare

CASES := 20000
SEED := 0
fuzz: setup  ## CASES= hostile inputs of all kinds (20000) from SEED= on; a table by kind
	OMP_NUM_THREADS=1 python -m tests.fuzz --cases $(CASES) --seed $(SEED)

KILLS := 100
chaos: setup  ## KILLS= random SIGKILLs (100) and other faults in small releases, from SEED= on; a table
	python -m tests.chaos --kills $(KILLS) --seed $(SEED)

check: setup  ## Lint, format, types, import rules, dvc.yaml, the site
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	hadolint Dockerfile Dockerfile.cuda
	python -m pipeline dvc | diff dvc.yaml -
	python -m pipeline params --schema | diff presets/schema.json -
	@site="$$(mktemp -d)" && mkdocs build --quiet --strict --site-dir "$$site"; status=$$?; rm -rf "$$site"; exit $$status

docs: setup  ## The documentation as a site, in site/
	mkdocs build --strict

setup: $(VENV)/.ready  ## Make or renew .venv from requirements.lock; removes nothing

# `uv pip sync` would remove TensorRT and flash-attn at every change of the lock.
$(VENV)/.ready: requirements.lock Makefile
	@test -x $(BIN)/uv || '$(PYTHON)' -c $(SUPPORTED) 2>/dev/null || \
	  { echo "error: $(if $(PYTHON),$(PYTHON) is not,there is no) Python 3.11 to 3.14 with venv (Debian's python3-venv);" \
	  "name one with \`make PYTHON=python3.13 $(MAKECMDGOALS)\`" >&2; exit 2; }
	@test -x $(BIN)/uv || \
	  { '$(PYTHON)' -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'; }
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --requirement requirements.lock
	@touch $@

# Names with versions from the second lock; their hashes are checked by --constraint.
GPU_PACKAGES = $(shell sed -nE 's/^((tensorrt[^=]*|einops|ninja|wheel)==[^ ]+).*/\1/p' requirements-gpu.lock)
FLASH_ATTN = $(shell sed -nE 's/^(flash-attn==[^ ]+).*/\1/p' requirements-gpu.lock)
INSTALL_GPU = $(BIN)/uv pip install --python $(BIN)/python --require-hashes --no-deps --constraint requirements-gpu.lock
MAX_JOBS ?= 4
export MAX_JOBS

setup-gpu: $(VENV)/.ready-gpu  ## Add TensorRT and flash-attn to .venv from requirements-gpu.lock; MAX_JOBS=4 compilers

# flash-attn is built against the torch of .venv, so no cached build of another torch may be taken.
$(VENV)/.ready-gpu: requirements-gpu.lock $(VENV)/.ready
	$(INSTALL_GPU) $(GPU_PACKAGES)
	@if command -v nvcc >/dev/null; then \
	  echo "building $(FLASH_ATTN) with $(MAX_JOBS) compilers: minutes to hours; each takes about 8 GiB of memory"; \
	  $(INSTALL_GPU) --no-build-isolation --no-cache --reinstall-package flash-attn $(FLASH_ATTN); \
	else \
	  echo "flash-attn is not built, since nvcc is not on PATH: attention uses PyTorch's kernels" >&2; \
	fi
	@touch $@

COMPILE = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-annotate --no-header --upgrade --quiet
lock:  ## Renew requirements.lock and requirements-gpu.lock from pyproject.toml
	$(COMPILE) --extra dev --output-file requirements.lock
	$(COMPILE) --extra gpu --extra flash-attn --constraint requirements.lock --output-file requirements-gpu.lock
	python -m pipeline versions > deps/.versions.yaml.part && mv deps/.versions.yaml.part deps/versions.yaml

schema:  ## Write presets/schema.json, by which editors check params.yaml
	python -m pipeline params --schema > presets/.schema.json.part && mv presets/.schema.json.part presets/schema.json

dvc.yaml:  ## Write dvc.yaml and what it names in deps/
	python -m pipeline links
	python -m pipeline versions > deps/.versions.yaml.part && mv deps/.versions.yaml.part deps/versions.yaml
	python -m pipeline dvc > .dvc.yaml.part && mv .dvc.yaml.part dvc.yaml

clean:  ## Remove results of runs; keep DVC's cache and the environment
	rm -rf artifacts .store .checkpoints mlflow.db mlartifacts mlruns .prefect .logs site
