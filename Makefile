# `make demo` and `make test` set up everything they need in .venv; Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES = $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

.PHONY: demo test test-slow soak lint clean

demo: $(VENV)/requirements
	$(BIN)/accelerate launch -q --num_cpu_threads_per_process $(CORES) --config_file accelerate_configs/cpu.yaml \
		train.py --config recipes/demo.yaml --overwrite_output_dir
	$(BIN)/python evaluate.py --config recipes/demo_evaluate.yaml --overwrite_output_dir
	@echo "Did it help, and where not? Open runs/demo/evaluation/report.html in a browser"
	@echo "The loss: $(BIN)/tensorboard --logdir runs/demo    The adapter: runs/demo/adapter"
	@echo "On tools it never saw: $(BIN)/python infer.py (a hard query), $(BIN)/python evaluate.py --config recipes/demo_evaluate_unseen.yaml"

# One thread per worker: the models of the tests are tiny.
test: $(VENV)/requirements-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

# Two at a time: most of them wait for processes of their own, and some launch two.
test-slow: $(VENV)/requirements-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

# 70 kills, half an hour; SOAK_SEED=1 draws other moments.
soak: $(VENV)/requirements-dev
	SOAK_TRAINING=50 SOAK_EVALUATION=20 $(BIN)/python -m pytest -m slow -s tests/test_soak.py

lint: $(VENV)/requirements-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp for each set: installed again when its file changes.
$(VENV)/requirements: requirements.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/requirements-dev: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
# For constrained decoding, without the 200 MB of Triton that it names; where there is no wheel its tests are skipped.
	-$(BIN)/pip install --quiet --disable-pip-version-check --no-deps xgrammar==0.2.8 apache-tvm-ffi==0.1.15.post2
	touch $@
