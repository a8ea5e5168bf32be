# `make` alone explains the targets. Everything runs in .venv, which `make setup` builds from constraints.txt.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV ?= .venv
FLOWER ?= .venv-flower
RUN := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup setup-flower quickstart test test-slow test-flower test-flower-slow lint types smoke mutants benchmark-robustness bench bench-release embedded-clip docs clean

help:  ## explain the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.done  ## build .venv with the exact versions of constraints.txt

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

quickstart: setup  ## five methods on 20 clients with handwritten digits: a table and plots in runs/quickstart
	$(RUN) -m fedmoe.cli fit --config configs/quickstart.yaml

test: setup  ## all tests but the slow ones, on three processes: they often wait for disks and other processes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 3 --dist worksteal -m "not flower and not slow"

test-slow: setup  ## kills, failing disks, whole tables, more random input: minutes more
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 -m "slow and not flower"

setup-flower: $(FLOWER)/.done  ## build .venv-flower, with Flower and the exact versions of constraints-flower.txt

$(FLOWER)/.done: pyproject.toml constraints-flower.txt
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --constraint constraints-flower.txt --editable ".[dev,flower]"
	@touch $@

test-flower: setup-flower  ## the tests with Flower's real processes: simulation and deployment
	OMP_NUM_THREADS=1 $(FLOWER)/bin/python -m pytest -n 2 --dist loadfile -m "flower and not slow" tests/test_flower_*.py

test-flower-slow: setup-flower  ## what happens when processes, networks and disks of a deployment fail (minutes)
	OMP_NUM_THREADS=1 $(FLOWER)/bin/python -m pytest -m "flower and slow" tests/test_flower_*.py

lint: setup  ## check style and formatting
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: setup  ## check static types
	$(RUN) -m mypy

smoke: setup  ## a federated run of two rounds through the command line, in seconds
	$(RUN) -m fedmoe.cli fit --config configs/smoke.yaml --output.overwrite=true

mutants: setup  ## mutation tests: change the code in one place at a time and list what no test notices (FILES= SURVIVORS=1)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev,mutants]"
	OMP_NUM_THREADS=1 $(RUN) -m experiments.mutants $(FILES) $(if $(SURVIVORS),--survivors)

reproduce-%: setup  ## a table or figure of the paper: reproduce-table2 (DATA= PRESET= REGIME= WEIGHTS= PRECISION= SEEDS= ROUNDS= CLIENTS= JOBS= WANDB= OUT=)
	$(RUN) -m experiments.reproduce $* $(if $(DATA),--data $(DATA)) $(if $(PRESET),--preset $(PRESET)) $(if $(REGIME),--regime $(REGIME)) \
		$(if $(filter no,$(CONTROLS)),--no-controls) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(CLIENTS),--clients $(CLIENTS)) \
		$(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(PRECISION),--precision $(PRECISION)) \
		$(if $(FEATURES_CACHE),--features-cache $(FEATURES_CACHE)) \
		$(if $(FEATURES_WORKERS),--features-workers $(FEATURES_WORKERS)) \
		$(if $(FEATURES_BATCH),--features-batch $(FEATURES_BATCH)) \
		$(if $(JOBS),--jobs $(JOBS)) $(if $(WANDB),--wandb $(WANDB)) $(if $(OUT),--out $(OUT))

benchmark-%: setup  ## every method in a protocol, ranked: benchmark-base-to-novel (PRESET=embedded, or full; DATA= SEEDS= ROUNDS= JOBS= OUT=)
	$(RUN) -m experiments.benchmark $* $(if $(filter full,$(PRESET)),,--preset $(or $(PRESET),embedded)) $(if $(DATA),--data $(DATA)) \
		$(if $(SEEDS),--seeds $(SEEDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(JOBS),--jobs $(JOBS)) $(if $(OUT),--out $(OUT))

benchmark-robustness: setup  ## methods against bad clients and bad experts, with the server's defences: a table and a picture (SEEDS= ROUNDS= OUT=)
	$(RUN) -m experiments.robustness $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(OUT),--out $(OUT))

bench: setup  ## speed of the local step and of a round against the plain way, on one thread (JSON= REPEATS=)
	OMP_NUM_THREADS=1 $(RUN) -m experiments.bench $(if $(REPEATS),--repeats $(REPEATS)) $(if $(JSON),--json $(JSON))

bench-release: setup  ## speed of a round against the release's model and the plain way, on one thread (RELEASE=checkout JSON= REPEATS=)
	OMP_NUM_THREADS=1 $(RUN) -m experiments.bench.steady $(if $(RELEASE),--release $(RELEASE)) \
		$(if $(REPEATS),--repeats $(REPEATS)) $(if $(JSON),--json $(JSON))

embedded-clip: setup  ## pre-train the embedded CLIP again (minutes) and check it
	$(RUN) -m pip install --quiet --requirement experiments/embedded_clip/requirements.txt
	$(RUN) -m experiments.embedded_clip.pretrain
	$(RUN) -m experiments.embedded_clip.check

docs: setup  ## the documentation site in site/, from the pages in docs/; warnings are errors
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs]"
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

clean:  ## remove .venv and caches (not runs/)
	rm -rf $(VENV) $(FLOWER) .mypy_cache .pytest_cache .ruff_cache *.egg-info
