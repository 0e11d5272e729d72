# Every target in one line: make help
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
INPUT ?= samples/
OUTPUT ?= out/
PERCEPTION ?= embedded
RUNNER ?= local
LIMIT ?=
RETRY ?=
KEY ?=
UNIT ?=
CLUSTER ?= http://127.0.0.1:8265
TO ?=
OPTIONS ?=
PAIRS ?=
CHECK ?=
SHARDS ?= out/
LATENTS ?= latents/
MODEL ?= tiny
EXPERIMENT ?= stage1

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.setup-$(shell cat pyproject.toml constraints.txt 2>/dev/null | cksum | cut -d' ' -f1)

##@ Main job
shards: setup $(if $(filter samples/,$(INPUT)),samples) ## Turn videos into verified shards: INPUT= OUTPUT= PERCEPTION= RUNNER= LIMIT= RETRY= OPTIONS="..."
	@$(RUN) -m engine.unroll input="$(INPUT)" output="$(OUTPUT)" perception=$(PERCEPTION) runner=$(RUNNER) \
	  $(if $(LIMIT),limit=$(LIMIT)) $(if $(RETRY),retry=$(RETRY)) $(OPTIONS); code=$$?; \
	if [ $$code = 0 ] || [ $$code = 2 ]; then $(RUN) -m shards verify "$(OUTPUT)" && exit $$code; else exit $$code; fi

status: setup ## What a run has done so far: OUTPUT=
	@$(RUN) -m shards info "$(OUTPUT)"

submit: setup ## Run `shards` as a job of a Ray cluster: CLUSTER=http://head:8265 INPUT=s3://... OUTPUT=s3://... OPTIONS="..."
	@$(RUN) -m engine.run.submit "$(CLUSTER)" input="$(INPUT)" output="$(OUTPUT)" perception=$(PERCEPTION) \
	  $(if $(LIMIT),limit=$(LIMIT)) $(if $(RETRY),retry=$(RETRY)) $(OPTIONS)

logs: setup ## Failures with their tracebacks, from the output alone: OUTPUT= KEY= or UNIT= adds a clip's events
	@$(RUN) -m engine.run.logs "$(OUTPUT)" $(if $(KEY),--key "$(KEY)") $(if $(UNIT),--unit "$(UNIT)")

verify: setup ## Recompute every hash, offset, key and schema rule: OUTPUT=
	@$(RUN) -m shards verify "$(OUTPUT)"

report: setup ## Write OUTPUT/report.html again
	@$(RUN) -m engine.run.report "$(OUTPUT)"

contact-sheet: setup ## Draw samples as PNG into contact-sheets/: OUTPUT= KEY="key ..." TO=
	@$(RUN) -m shards contact-sheet "$(OUTPUT)" $(KEY) $(if $(TO),--to "$(TO)")

samples: setup ## Render the sample videos with exact truth into samples/: PAIRS=1 adds a second agent's view
	@$(RUN) -m engine.synthetic --output samples/ $(if $(PAIRS),--pairs)

weights: setup ## Fetch the foundation models, sizes and licences shown first: CHECK=1 only says what is missing
	@$(RUN) -m engine.perception.weights $(if $(CHECK),--check) $(OPTIONS)

##@ Training
encode: setup ## Encode shards into latent shards: SHARDS= LATENTS= MODEL= OPTIONS="..."
	@$(RUN) -m trainer.encode shards="$(SHARDS)" latents="$(LATENTS)" model=$(MODEL) $(OPTIONS)

train: setup ## Train on shards: SHARDS= MODEL= EXPERIMENT= OPTIONS="..."
	@$(RUN) -m trainer.train shards="$(SHARDS)" model=$(MODEL) experiment=$(EXPERIMENT) $(OPTIONS)

##@ Development
setup: $(STAMP) ## Make .venv with pinned dependencies; quick when done

test: setup ## The tests that finish in minutes
	@$(RUN) -m pytest -q -n 2 -m "not slow and not gpu" $(OPTIONS)

test-faults: setup ## Every fault-injection test; those with a Ray cluster one after the other
	@$(RUN) -m pytest -q -n 2 --dist loadgroup -m fault --durations=30 $(OPTIONS)

test-slow: setup ## The tests that take longer and inject no faults: whole runs, jobs, every strategy of the trainer
	@$(RUN) -m pytest -q -n 2 --dist loadgroup -m "slow and not fault and not gpu" --durations=10 $(OPTIONS)

test-all: setup ## Every test that needs no GPU
	@$(RUN) -m pytest -q -m "not gpu" $(OPTIONS)

bench: setup ## Speed beside named peers, as ratios
	@set -e; for bench in $(filter-out %bench_gpu.py %bench_tum.py,$(wildcard tests/bench/bench_*.py)); do echo "== $$bench"; $(RUN) $$bench; done

bench-gpu: setup ## Foundation perception on this machine's GPU: frames/s, busy share, memory
	@$(RUN) tests/bench/bench_gpu.py $(OPTIONS)

bench-train: setup ## SAWG and WSA beside plain Wan; on a GPU also step time, MFU, memory at 14B width: OPTIONS="--device cuda"
	@$(RUN) tests/bench/bench_train.py $(OPTIONS)

bench-accuracy: setup ## Accuracy on synthetic worlds against exact truth; non-zero when a goal is missed
	@$(RUN) tests/bench/accuracy.py --seeds 8 $(OPTIONS)
	@$(RUN) tests/bench/accuracy.py --perception embedded --seeds 2 $(OPTIONS)

lint: setup ## ruff, formatting, types, generated pages
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(RUN) -m engine.config --check docs/configuration.md
	@$(RUN) -m shards.document --check docs/sample.md
	@$(RUN) -m trainer.config --check docs/training_options.md

clean: ## Remove the virtual environment, sample output and caches (not your OUTPUT)
	rm -rf $(VENV) samples out bench .pytest_cache .ruff_cache .mypy_cache *.egg-info

help: ## This list
	@awk 'BEGIN {FS = ":.*?## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*?## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up ---------------------------------------------------------------------------------------------
# torch and torchvision come together from the default index: a CPU-only torch beside torchvision does not import.
# --no-build-isolation: deepspeed and sam2 look for torch while they build. mediapipe without its dependencies:
# only the BlazePose files inside its wheel are used (it pins numpy < 2).
SYSTEM_LIBRARIES := libusb-1.0.so.0:libusb-1.0-0 libGL.so.1:libgl1 libEGL.so.1:libegl1 libgomp.so.1:libgomp1

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"Python 3.11 or 3.12 is needed, found {v[0]}.{v[1]}; run: make setup PYTHON=python3.11")'
	@missing=""; for pair in $(SYSTEM_LIBRARIES); do ldconfig -p | grep -q "$${pair%%:*}" || missing="$$missing $${pair##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing system libraries:$$missing"; apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "Open3D needs system libraries that are missing. Run: sudo apt-get install -y$$missing"; exit 1; fi; fi
	@echo "making $(VENV) (several GB on the first time)"
	@[ -x $(RUN) ] || $(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install -q -c constraints.txt pip setuptools wheel ninja packaging numpy torch torchvision
	@DS_BUILD_OPS=0 $(RUN) -m pip install -q -c constraints.txt --no-build-isolation -e '.[engine,foundation,trainer,dev]'
	@$(RUN) -m pip install -q -c constraints.txt --no-deps mediapipe
	@rm -f $(VENV)/.setup-*; touch $@

.PHONY: shards status submit logs verify report contact-sheet samples weights encode train setup test test-faults test-slow test-all bench bench-gpu bench-train bench-accuracy lint clean help
