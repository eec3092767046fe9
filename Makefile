# `make help` lists the targets. GPU=1 installs TensorFlow's CUDA libraries, too.
PYTHON ?= python3
BIN := .venv/bin
LOCK := requirements$(if $(GPU),-gpu).txt
PIP := $(BIN)/python -m pip install --quiet --require-hashes
export PATH := $(CURDIR)/$(BIN):$(PATH)
# The PATH is for what these commands start: make 3.81, which macOS has, does not heed it itself. `python -m`, because
# installed scripts begin with the path at which the environment was made: a project may be moved.

N ?= 5

.PHONY: help repro seeds gate gate-power promote test test-jax test-slow test-browser check pictures ui serve send joined bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

repro: .venv/$(LOCK) ## set everything up, then run the pipeline
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "$(CURDIR) is not a git repository, which DVC needs: \
	get the project with git clone, or run git init here" >&2; exit 1; }
	$(BIN)/python -m dvc repro

seeds: .venv/$(LOCK) ## train seeds 1 to N (N=5) of what is configured, as DVC experiments, for the gate
	$(BIN)/python -m dvc exp run --queue -S '++seed=range(1,$(shell expr $(N) + 1))'
	$(BIN)/python -m dvc exp run --run-all

gate: .venv/$(LOCK) ## is this model worse than where the work branched off? BASE=REV names another baseline
	$(BIN)/python -m pipeline.gate $(if $(BASE),--base $(BASE)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

promote: .venv/$(LOCK) ## make this model the champion if the gate lets it (BASE=REV); ROLLBACK=1 goes back to the one before, WITHOUT_CHAMPION=1 compares with BASE alone
	$(BIN)/python -m pipeline.promote $(if $(BASE),--base $(BASE)) $(if $(ROLLBACK),--rollback) $(if $(WITHOUT_CHAMPION),--without-champion)

test: .venv/requirements-dev.txt ## set up what the tests need, then pass them
	$(BIN)/python -m pytest

test-jax: .venv/requirements-dev.txt ## what only JAX does; ALL=1 passes the tests of trainings on it, too
	KERAS_BACKEND=jax $(BIN)/python -m pytest -m "jax$(if $(ALL), or not (slow or browser or tensorflow))" tests/backends/test_jax.py $(if $(ALL),tests/train)

test-slow: .venv/requirements-dev.txt ## the default recipe on the real MNIST, and all that takes minutes
	$(BIN)/python -m pytest -m slow

test-browser: .venv/requirements-dev.txt ## look at the MLflow UI, the report and the page to draw on in Chromium, as a person would
	$(BIN)/python -m pytest -m browser -n 0

pictures: .venv/requirements-dev.txt ## take the README's pictures anew, of the runs and the report that are there
	$(BIN)/python -m tests.browser.pictures

check: .venv/requirements-dev.txt ## ruff, ruff format, mypy strict, and zizmor for the workflows
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy
	$(BIN)/zizmor --offline --quiet --strict-collection .github

ui: .venv/$(LOCK) ## open the MLflow UI on the list of runs
	$(BIN)/python -m pipeline.tracking ui

serve: .venv/$(LOCK) ## draw a digit and see what the registered champion reads
	$(BIN)/python -m pipeline.serve

send: .venv/$(LOCK) ## send to MLflow what earlier runs could not
	$(BIN)/python -m pipeline.tracking send

joined: .venv/$(LOCK) ## is every DVC experiment in MLflow, and every run in DVC?
	$(BIN)/python -m pipeline.tracking check

bench: .venv/requirements-dev.txt ## measure the cost against a plain Keras script; writes docs/bench.json; QUICK=1 in minutes
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

gate-power: .venv/requirements-dev.txt ## measure by simulation what the gate sees and misses; writes docs/gate.md
	$(BIN)/python -m benchmarks.gate_power

lock: ## compile the pinned requirements anew from pyproject.toml (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --upgrade pyproject.toml -o requirements.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements.txt --extra dev pyproject.toml -o requirements-dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements.txt --extra gpu pyproject.toml -o requirements-gpu.txt
	echo "uv>=0.9" | uv pip compile -q --universal --python-version 3.11 --generate-hashes - -o requirements-uv.txt

clean: ## remove the environment and the caches of tools, not data, models or runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

# A package that a killed installation left half-done looks complete to uv and pip, so the next one installs all anew.
anew = $$(ls .venv/*.unfinished >/dev/null 2>&1 && echo $(1); true) && touch $@.unfinished

# uv takes a third of pip's time. It does not read pip's configuration, so it is told where packages come from; where
# pip has more to heed than that, pip installs.
define install-with-uv
pip="$(BIN)/python -m pip" && { ! $$pip config list | grep -qE "\.(no-index|proxy|client-cert|trusted-host)="; } && \
index=$$($$pip config get :env:.index-url 2>/dev/null || $$pip config get install.index-url 2>/dev/null \
	|| $$pip config get global.index-url 2>/dev/null || true) && \
$(PIP) -r requirements-uv.txt && echo "installing $<" && anew=$(call anew,--reinstall) && \
env $${index:+UV_DEFAULT_INDEX="$$index"} \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode $$anew -r $<
endef

works = $(BIN)/python -m pip --version >/dev/null 2>&1

# An environment is as new as the requirements that it was last made from.
.venv/%.txt: %.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("Python 3.11, 3.12 or 3.13 is needed, this is %d.%d: make PYTHON=python3.13 …" % v)'
	@$(works) || $(PYTHON) -m venv .venv 2>/dev/null; $(works) || $(PYTHON) -m venv --clear .venv
	@$(install-with-uv) || { echo "uv could not install $<: pip does, which takes longer"; \
	anew=$(call anew,--force-reinstall) && $(PIP) $$anew -r $<; }
	@rm $@.unfinished
	@touch $@
