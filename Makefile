# `make help` lists the targets. BACKEND=jax or BACKEND=torch uses another Keras backend than TensorFlow; GPU=1 also
# installs CUDA libraries, which PyTorch's package for Linux always contains.
PYTHON ?= python3
BIN := .venv/bin
BACKENDS := tensorflow jax torch
override BACKEND := $(strip $(BACKEND))
ifneq ($(BACKEND),)
$(if $(and $(filter 1,$(words $(BACKEND))),$(filter $(BACKENDS),$(BACKEND))),,$(error BACKEND=$(BACKEND): must be one of $(BACKENDS)))
export KERAS_BACKEND := $(BACKEND)
endif
CUDA := $(if $(filter torch,$(BACKEND)),,$(if $(GPU),-gpu))
LOCK := requirements$(patsubst %,-%,$(filter-out tensorflow,$(BACKEND)))$(CUDA).txt
PIP := $(BIN)/python -m pip install --quiet --require-hashes
export PATH := $(CURDIR)/$(BIN):$(PATH)
# PATH is for child processes of the commands below: make 3.81, the version on macOS, does not use it itself. Commands
# use `python -m` because installed scripts contain the original path of the environment, and a project may be moved.

COMPILE := uv pip compile -q --universal --python-version 3.11 --generate-hashes
# Of several machines that train together, only the first one runs the pipeline.
PIPELINE = $(if $(filter-out 0,$(JAX_PROCESS_ID)),pipeline.stages.train,dvc repro)
quoted = '$(subst ','\'',$(1))'
TORCH = $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements-torch.txt)
N ?= 5

.PHONY: help repro seeds sweep gate gate-power promote reproduce test test-jax test-torch test-slow test-browser test-services faults fuzz check docs pictures ui serve send joined doctor bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

repro: .venv/$(LOCK) ## set up the environment and run the pipeline; DEVICES=N or all trains on several devices
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "$(CURDIR) is not a git repository, which DVC needs: \
	get the project with git clone, or run git init here" >&2; exit 1; }
	$(BIN)/python -m $(PIPELINE)

seeds: .venv/$(LOCK) ## train the current configuration with seeds 1 to N (default 5), as DVC experiments, for the gate; in MLflow, one run has their mean and deviation
	$(BIN)/python -m dvc exp run --queue -S '++seed=range(1,$(shell expr $(call quoted,$(N)) + 1))'
	$(BIN)/python -m dvc exp run --run-all
	$(BIN)/python -m pipeline.commands.runs seeds

sweep: .venv/$(LOCK) .venv/requirements-$(if $(RAY),ray,sweep).txt ## search for better settings: NAME=mlp names a file of sweeps/; JOBS=N trains N side by side, RAY=HOST:PORT on a cluster, APPLY=1 writes the best into params.yaml, RECIPE=NAME into a new recipe
	$(BIN)/python -m pipeline.sweep $(call quoted,$(or $(NAME),mlp)) $(if $(TRIALS),--trials $(call quoted,$(TRIALS))) $(if $(JOBS),--jobs $(call quoted,$(JOBS))) $(if $(RAY),--ray $(call quoted,$(RAY))) $(if $(APPLY),--apply) $(if $(RECIPE),--recipe $(call quoted,$(RECIPE)))

gate: .venv/$(LOCK) ## check that this model is not worse than that of the merge base; BASE=REV sets another baseline
	$(BIN)/python -m pipeline.commands.gate $(if $(BASE),--base $(call quoted,$(BASE))) $(if $(MARKDOWN),--markdown $(call quoted,$(MARKDOWN)))

promote: .venv/requirements$(if $(GPU),-gpu).txt ## make this model the champion if it passes the gate (BASE=REV); ROLLBACK=1 restores the previous champion, WITHOUT_CHAMPION=1 compares only with BASE
	$(BIN)/python -m pipeline.commands.promote $(if $(BASE),--base $(call quoted,$(BASE))) $(if $(ROLLBACK),--rollback) $(if $(WITHOUT_CHAMPION),--without-champion)

reproduce: .venv/$(LOCK) ## run a commit's pipeline in a fresh clone with its own environment, and compare with its dvc.lock (REV=HEAD); PROMISE=tests/promises/digits takes seconds, REUSE=1 uses this environment, KEEP=1 keeps the clone
	$(BIN)/python -m pipeline.commands.reproduce $(call quoted,$(or $(REV),HEAD)) $(if $(PROMISE),--promise $(call quoted,$(PROMISE))) $(if $(REUSE),--reuse) $(if $(UPDATE),--update) $(if $(KEEP),--keep)

test: .venv/requirements-dev.txt ## set up the test environment and run the tests
	$(BIN)/python -m pytest

test-jax: .venv/requirements-dev.txt ## run the tests of the JAX backend; ALL=1 also runs the training tests on JAX
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "not slow and (jax$(if $(ALL), or not (browser or tensorflow)))" tests/core/backends/test_jax.py tests/core/backends/test_devices.py tests/stages/train$(if $(ALL),,/test_processes.py)

test-torch: .venv/requirements-dev.txt ## run the tests of the PyTorch backend; installs PyTorch
	$(BIN)/python -m pip install --quiet "torch==$(TORCH)"
	KERAS_BACKEND=torch $(BIN)/python -m pytest -m torch tests/core/backends/test_torch.py

test-slow: .venv/requirements-dev.txt ## run the tests that take minutes, such as training on the real MNIST
	$(BIN)/python -m pytest -m slow

test-browser: .venv/requirements-dev.txt ## test the MLflow UI, the report and the drawing page in Chromium, as a user would
	$(BIN)/python -m pytest -m browser -n 0

test-services: .venv/requirements-dev.txt ## test a team's server: MLflow with logins on PostgreSQL, and an S3-compatible store
	$(BIN)/python -m pytest -m services -n 1

faults: .venv/requirements-dev.txt ## kill, damage and exhaust everything that the pipeline uses, and write docs/faults.md; SAMPLE=20 tries 20 faults
	$(BIN)/python -m pytest -m faults -n 3 tests/faults $(if $(SAMPLE),--sample $(call quoted,$(SAMPLE)),--table docs/faults.md)

fuzz: .venv/requirements-dev.txt ## fuzz the parsers and the server with 10,000 inputs each
	FUZZ=1 $(BIN)/python -m pytest tests/fuzzing
	$(BIN)/python -m tests.fuzzing

pictures: .venv/requirements-dev.txt ## retake the documentation's pictures from the existing runs, report and sweep
	$(BIN)/python -m tests.browser.pictures

check: .venv/requirements-dev.txt ## run ruff, ruff format, mypy in strict mode, codespell, and zizmor on the workflows
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/python -m codespell_lib . .github
	$(BIN)/zizmor --offline --quiet --strict-collection .github

docs: .venv/requirements-dev.txt ## build the documentation as a site in site/; a broken link is an error
	$(BIN)/python -m zensical build --strict --clean

ui: .venv/$(LOCK) ## open the MLflow UI at the list of runs
	$(BIN)/python -m pipeline.commands.runs ui

serve: .venv/$(LOCK) ## serve the registered champion: draw a digit and see the prediction
	$(BIN)/python -m pipeline.commands.serve

doctor: .venv/$(LOCK) ## check what this machine can do, and what prevents the pipeline from running
	$(BIN)/python -m pipeline.commands.doctor

send: .venv/$(LOCK) ## send records to MLflow that earlier runs could not send
	$(BIN)/python -m pipeline.commands.runs send

joined: .venv/$(LOCK) ## check that every DVC experiment is in MLflow, and every run in DVC
	$(BIN)/python -m pipeline.commands.runs check

bench: .venv/requirements-dev.txt ## benchmark against plain Keras scripts and write docs/bench.json; QUICK=1 takes minutes
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

gate-power: .venv/requirements-dev.txt ## simulate how often the gate detects worse models, and write the table in docs/gate.md
	$(BIN)/python -m benchmarks.gate_power

lock: ## recompile the pinned requirements from pyproject.toml (needs uv)
	$(COMPILE) --upgrade --extra tensorflow pyproject.toml -o requirements.txt
	for extra in dev gpu jax jax-gpu ray sweep team torch; do \
	$(COMPILE) -c requirements.txt --extra $$extra pyproject.toml -o requirements-$$extra.txt || exit; done
	echo "uv>=0.9" | $(COMPILE) - -o requirements-uv.txt

clean: ## remove the environment and the tools' caches, but not data, models or runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

# A package that a killed installation left incomplete looks complete to uv and pip, so the next one reinstalls all.
anew = $$(ls .venv/*.unfinished >/dev/null 2>&1 && echo $(1); true) && touch $@.unfinished

# uv takes a third of pip's time. It does not read pip's configuration, so it gets the package index from there; if pip
# has other network settings, pip installs.
define install-with-uv
pip="$(BIN)/python -m pip" && { ! $$pip config list | grep -qE "\.(no-index|proxy|client-cert|trusted-host)="; } && \
index=$$($$pip config get :env:.index-url 2>/dev/null || $$pip config get install.index-url 2>/dev/null \
	|| $$pip config get global.index-url 2>/dev/null || true) && \
$(PIP) -r requirements-uv.txt && echo "installing $<" && anew=$(call anew,--reinstall) && \
env $${index:+UV_DEFAULT_INDEX="$$index"} \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode $$anew -r $<
endef

works = $(BIN)/python -m pip --version >/dev/null 2>&1

# .venv/NAME.txt records when NAME.txt was last installed, so that make installs changed requirements.
.venv/%.txt: %.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make PYTHON=python3.13 …" % v)'
	@$(works) || $(PYTHON) -m venv .venv 2>/dev/null; $(works) || $(PYTHON) -m venv --clear .venv
	@$(install-with-uv) || { echo "uv could not install $<: pip does, which takes longer"; \
	anew=$(call anew,--force-reinstall) && $(PIP) $$anew -r $<; }
	@rm $@.unfinished
	@touch $@
