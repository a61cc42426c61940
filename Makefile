# make train     train a VAE; ARGS="-p dataset MNIST -p train_for '2 epochs'" sets parameters, NAME=first names the run
# make test      everything: notebooks, tests, the gate; ARGS goes to pytest
# make bench     images per second beside a bare loop
# make torture   kill runs a hundred times and more, resume them, compare; ARGS="--kills 300"
# make prepare   before a commit: format, lint, export, clean, README
# make docs      the pages, in _docs (needs Quarto)
# PYTHON=python3.12 make … chooses the Python; UV_TORCH_BACKEND=cpu takes the small torch where uv is installed.
PYTHON ?= python3
NAME := train-$(shell date +%Y%m%d-%H%M%S)
NOTEBOOK = runs/$(NAME).ipynb

# .venv's programs first, and the kernel `python3` is .venv's whatever else the user has registered
# (idle threads sleep: where cores are shared, spinning ones were measured to make a run sixty times slower)
IN := OMP_WAIT_POLICY=PASSIVE PATH="$(CURDIR)/.venv/bin:$$PATH" JUPYTER_PATH="$(CURDIR)/.venv/share/jupyter"

.PHONY: train test bench torture prepare readme docs
train test bench torture prepare readme docs: .venv/installed

.venv/installed: settings.ini setup.py pyproject.toml
	@PYTHON="$(PYTHON)" scripts/environment

train:
	$(if $(strip $(foreach p,-p -r --parameters --parameters_raw,$(findstring $(p) name ,$(strip $(ARGS)) ))),$(error name the run with NAME=…, not in ARGS))
	@if [ -e "$(NOTEBOOK)" ]; then echo "dlframe: $(NOTEBOOK) exists: choose another NAME" >&2; exit 1; fi
	@mkdir -p runs
	@RUNS_ROOT="$(CURDIR)/runs" $(IN) python -m papermill --engine dlframe --stdout-file - --stderr-file - nbs/experiments/train.ipynb "$(NOTEBOOK)" -p beta 0.1 $(ARGS) -r name "$(NAME)" || \
	  { status=$$?; [ ! -e "$(NOTEBOOK)" ] || echo "dlframe: training failed; the notebook as far as it came: $(NOTEBOOK)" >&2; exit $$status; }
	@echo "run folder: runs/$(NAME)/"
	@echo "notebook:   $(NOTEBOOK)"

test:
	@$(IN) python -m pytest $(ARGS)

bench:
	@$(IN) python benchmarks/throughput.py $(ARGS)

torture:
	@$(IN) OMP_NUM_THREADS=1 PYTHONPATH=. python tests/torture.py $(ARGS)

prepare:
	@$(IN) ruff check --fix nbs tests benchmarks scripts setup.py
	@$(IN) ruff format nbs tests benchmarks scripts setup.py
	@$(IN) nbdev-export
	@$(IN) nbdev-clean
	@$(IN) python scripts/readme.py

readme:
	@$(IN) python scripts/readme.py

docs:
	@command -v quarto >/dev/null || { echo "dlframe: the pages need Quarto: https://quarto.org/docs/get-started" >&2; exit 1; }
	@$(IN) nbdev-docs
