# make picture | test | lint | venv.   Each sets up .venv by itself when it is missing or its requirements changed.

PYTHON ?= python3
# Pinned, so that everyone tests the same.  With PyTorch's CPU index in PIP_EXTRA_INDEX_URL this is the CPU build, without
# it on Linux the CUDA build, gigabytes larger.
TORCH ?= torch==2.13.0
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: help picture test lint venv

help:
	@sed -n 's/^# make/make/p' Makefile

picture: $(READY)
	$(PY) -m comfy_moss generate "a red heart on a gradient white background" -o out/picture.png --maps out/maps

# One thread: the tests' models are tiny, and on a few shared cores more threads are slower.
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .

venv: $(READY)

$(READY): requirements.txt requirements-lab.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet "$(TORCH)"
	$(PY) -m pip install --quiet -r requirements-lab.txt -r requirements.txt "pytest>=8.2" "ruff>=0.14" "psutil>=5.9" "gguf>=0.17" "triton>=3.2; sys_platform == 'linux'"
	touch $@
