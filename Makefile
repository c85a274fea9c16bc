# make serve   set up and serve the bundled model at http://127.0.0.1:8000, for anybody on this
#              machine; AUTH=keys asks for API keys
# make test    set up, lint, and run the tests; test-slow runs those of rarer formats
# make test-cluster   run the rendered release of k8s/overlays/cpu-dev on pods of this machine, with the
#              model that `make serve` has attested in STATE; needs root
# make coverage   run the unit tests, show the lines that no test runs, and fail below the floor
# make fuzz    try generated requests, provider answers, files and arguments; FUZZ_SECONDS=600
# make gpu    run the checks that need an NVIDIA GPU, in an environment of requirements/gpu.txt and
#              pytest; fails where all are skipped
# make proof-evidence   earn, break and earn again a claim over HTTP, with a kill -9; PROOF_ARGS=
# make gate    test INT8 and INT4 models against the 16-bit one and show the verdicts
# make docs-examples   write a running stack's answers into a page; PAGE=docs/tasks.md
# make bench   measure the running stack beside bare vLLM and an empty handler
# make bench-goals   print every goal for the stack's own cost as met or missed; BENCH_ARGS=--quick
# make bench-check   compare what a request costs the gateway with the figures in the repository
# make soak    an hour of mixed traffic with faults: leaks, and the ledger beside the provider's records;
#              BENCH_ARGS="--minutes N"; "--stack STATE" loads the whole stack and kills its engine
# make bench-gate   measure evaluations beside bare lm-eval
# make bench-gateway   measure what the gateway adds to a frontier call
# make bench-ledger   measure what the ledger adds, with SQLite and with PostgreSQL
# make bench-evidence   run labelled texts through the folds of evidence; BENCH_ARGS="--data DIR --stack URL"
# make bench-tiers   simulate tiers that are earned per cluster; BENCH_ARGS="--seeds N"
# make bench-cache   measure the cache: lookups, hits through HTTP, memory, replays with repeats
# make bench-context   measure pruning of contexts of 4,000 tokens; BENCH_ARGS="--contexts N"
# make bench-batch   measure interactive requests beside a batch, lines a second, memory
# make bench-scale   simulate many gateways and engines, fitted to service times measured here;
#              BENCH_ARGS="--measured benchmarks/scale.json" measures nothing
# make bench-cost   replay a mix of requests with each lever over a simulated provider
# make bench-cost-live   compare what chats cost through a started stack and without it

PORT ?= 8000
STATE ?= .narrowgate
AUTH ?= off
VENV ?= .venv
BENCH_ARGS ?=
PROOF_ARGS ?=
FUZZ_SECONDS ?= 600
GATE_ARGS ?=
PAGE ?= README.md

.PHONY: serve test test-slow test-cluster unit coverage integration fuzz lint gpu gate docs-examples proof-evidence bench bench-goals bench-check soak bench-gate bench-gateway bench-ledger bench-cache bench-context bench-batch bench-scale bench-cost bench-cost-live bench-evidence bench-tiers lock clean
.DEFAULT_GOAL := serve

$(VENV)/.cpu: requirements/cpu.txt quantize/requirements/torch-cpu.txt requirements/install pyproject.toml
	requirements/install $(VENV) requirements/cpu.txt
	@touch $@

$(VENV)/.cpu-dev: requirements/cpu-dev.txt quantize/requirements/torch-cpu.txt requirements/install pyproject.toml
	requirements/install $(VENV) requirements/cpu-dev.txt
	@touch $@ $(VENV)/.cpu

# exec: signals sent to the recipe reach the program itself.
serve: $(VENV)/.cpu
	@exec $(VENV)/bin/narrowgate serve --port $(PORT) --state $(STATE) --auth $(AUTH)

# A stack and its tests start dozens of processes: where nothing is compiled once, each compiles all.
unexport PYTHONDONTWRITEBYTECODE

test: lint unit integration

lint: $(VENV)/.cpu-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/zizmor --offline --no-progress --quiet .github
	$(VENV)/bin/actionlint
	$(VENV)/bin/hadolint Dockerfile.gpu

# loadfile: a server that the tests of a file share starts once. Without reordering, the files that
# tests/unit/conftest.py names begin first; xdist would begin those with few tests last.
UNIT = $(VENV)/bin/pytest tests/unit -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder
unit: $(VENV)/.cpu-dev
	$(UNIT)

# Half as much processor time again: a job of its own where the tests run for each change.
coverage: $(VENV)/.cpu-dev
	$(UNIT) --cov --cov-report=
	$(VENV)/bin/coverage report --skip-covered --show-missing
	$(VENV)/bin/coverage html -d build/coverage

# Each fuzzer gets an equal share of the time; one that finds something ends the run.
FUZZERS = $(notdir $(basename $(filter-out %/__init__.py %/rounds.py,$(wildcard tests/fuzz/*.py))))
fuzz: $(VENV)/.cpu-dev
	set -e; for name in $(FUZZERS); do \
		$(VENV)/bin/python -m tests.fuzz.$$name --seconds $$(($(FUZZ_SECONDS) / $(words $(FUZZERS)))); \
	done

integration: $(VENV)/.cpu-dev
	$(VENV)/bin/pytest tests/integration -m "not slow" --durations=25

test-slow: $(VENV)/.cpu-dev
	$(VENV)/bin/pytest tests/unit tests/integration -m slow --durations=25

test-cluster: $(VENV)/.cpu-dev
	STATE=$(abspath $(STATE)) $(VENV)/bin/pytest tests/cluster --durations=10

# The environment is not made here: requirements/cpu-dev.txt has a torch without CUDA.
gpu:
	$(VENV)/bin/python -m pytest tests/gpu -m gpu

# The stack must be set as the page states.
docs-examples: $(VENV)/.cpu-dev
	$(VENV)/bin/python -m tests.integration.shown $(PAGE) http://127.0.0.1:$(PORT)

proof-evidence: $(VENV)/.cpu-dev
	$(VENV)/bin/python -m tests.integration.evidence_proof $(PROOF_ARGS)

bench: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks stack --port $(PORT) --state $(STATE) $(BENCH_ARGS)

bench-goals: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks goals --state $(STATE) $(BENCH_ARGS)

bench-check: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks check $(BENCH_ARGS)

soak: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks soak $(BENCH_ARGS)

bench-gate: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks gate --state $(STATE) $(BENCH_ARGS)

bench-gateway: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks gateway --state $(STATE) $(BENCH_ARGS)

bench-ledger: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks ledger $(BENCH_ARGS)

bench-evidence: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks evidence --state $(STATE) $(BENCH_ARGS)

bench-tiers: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks tiers $(BENCH_ARGS)

bench-cache: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks cache $(BENCH_ARGS)

bench-context: $(VENV)/.cpu
	OPENBLAS_NUM_THREADS=1 $(VENV)/bin/python -m benchmarks context $(BENCH_ARGS)
	OPENBLAS_NUM_THREADS=2 $(VENV)/bin/python -m benchmarks context $(BENCH_ARGS)

bench-batch: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks batch $(BENCH_ARGS)

bench-scale: $(VENV)/.cpu-dev
	$(VENV)/bin/python -m benchmarks scale $(BENCH_ARGS)

bench-cost: $(VENV)/.cpu-dev
	$(VENV)/bin/python -m benchmarks replay --state $(STATE) $(BENCH_ARGS)

bench-cost-live: $(VENV)/.cpu
	$(VENV)/bin/python -m benchmarks cost --state $(STATE) --port $(PORT) $(BENCH_ARGS)

# A verdict is no error here; what could not be run is. The loss that is acceptable in 4 bits has no
# default: for this demonstration it is 0.05.
BUNDLED = smollm2-135m-instruct
MARGINS_int4-w4a16-gptq = $(foreach task,sentiment topic ner translation,--margin $(task)=0.05)
gate: $(VENV)/.cpu $(foreach recipe,int8-w8a8 int4-w4a16-gptq,gate-$(recipe))

gate-%: $(VENV)/.cpu
	@$(VENV)/bin/narrowgate materialize --state $(STATE)
	@test -f $(STATE)/keys/development || $(VENV)/bin/narrowgate keygen --out $(STATE)/keys/development
	@test -f $(STATE)/artifacts/$(BUNDLED)-$*/config.json || $(VENV)/bin/narrowgate quantize \
		bundled:$(BUNDLED) --recipe $* --out $(STATE)/artifacts/$(BUNDLED)-$* --state $(STATE)
	@$(VENV)/bin/narrowgate gate --baseline $(STATE)/models/$(BUNDLED) \
		--candidate $(STATE)/artifacts/$(BUNDLED)-$* --suite builtin --key $(STATE)/keys/development \
		--attest-baseline $(STATE)/artifacts/$(BUNDLED)-$*.baseline \
		$(MARGINS_$*) $(GATE_ARGS); case $$? in 0|1|3) ;; *) exit 2;; esac

# One resolution a target. Hosts are left out on purpose: indexes belong to the machine.
FIND_LINKS = $(addprefix --find-links ,$(shell $(VENV)/bin/python -m pip config get global.find-links 2>/dev/null))
UV_COMPILE = $(VENV)/bin/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	--overrides requirements/overrides.txt pyproject.toml
UV_COMPILE_CPU = $(UV_COMPILE) $(FIND_LINKS) --overrides requirements/overrides-cpu.txt --no-emit-package torch
UV_COMPILE_GPU = $(UV_COMPILE) --python-platform x86_64-manylinux_2_28
lock:
	test -x $(VENV)/bin/uv || requirements/install $(VENV) requirements/cpu-dev.txt
	$(UV_COMPILE_CPU) --extra cpu --extra evals -o requirements/cpu.txt
	$(UV_COMPILE_CPU) --constraints requirements/cpu.txt --extra cpu --extra evals --extra dev \
		-o requirements/cpu-dev.txt
	$(UV_COMPILE_GPU) --extra gpu --extra evals -o requirements/gpu.txt
	$(UV_COMPILE_CPU) --extra quantize -o quantize/requirements/cpu.txt
	$(UV_COMPILE_GPU) --extra quantize -o quantize/requirements/gpu.txt

clean:
	rm -rf $(VENV) $(STATE) build *.egg-info
