# make run    the pipeline; CONFIG=my.yaml for your own data, CORES=8 for more cores
# make why    which of its jobs would run now, and why; with the same CONFIG
# make reproduce RUN=results/my_run    runs it again elsewhere and compares every result
# make test   all tests
# make fuzz   malformed inputs for every reader, 10,000 each; INPUTS=500 KINDS="h5ad csv" for fewer
# make test-cluster    the pipeline on a Slurm of its own (as root, Debian or Ubuntu)
# make docs   the pages of docs/ that are made from the settings and the rules
# make gallery    docs/gallery.md, from the embedded example
# All create what they need in .venv at the first call and install nothing after that.

CORES ?= 2
INPUTS ?= 10000
KINDS ?=
PYTHON ?= python3
CONFIG ?=
RUN ?=
OUT ?=
VENV ?= .venv
BIN := $(VENV)/bin
# Numerical libraries take all cores by default; snakemake hands out the cores here.
export OMP_NUM_THREADS ?= 1

.PHONY: help run why reproduce test fuzz test-cluster docs gallery check
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile | head -9

# Given to Snakemake, a config may be a template with code to run; configuration.py refuses that.
run: $(VENV)/run.done
	@$(if $(CONFIG),$(BIN)/python workflow/scripts/configuration.py $(CONFIG))
	@PATH="$(abspath $(BIN)):$$PATH" snakemake --cores $(CORES) $(if $(CONFIG),--configfile $(CONFIG))

why: $(VENV)/run.done
	@$(if $(CONFIG),$(BIN)/python workflow/scripts/configuration.py $(CONFIG))
	@$(BIN)/python workflow/scripts/why.py $(if $(CONFIG),--configfile $(CONFIG))

reproduce: $(VENV)/run.done
	@PATH="$(abspath $(BIN)):$$PATH" python workflow/scripts/reproduce.py $(RUN) \
		$(if $(OUT),--out $(OUT)) --cores $(CORES) $(ARGS)

# A file of tests stays on one core, since its tests share what they stand on; tests/conftest.py says
# which files come first.
test: $(VENV)/test.done
	@PATH="$(abspath $(BIN)):$$PATH" python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: $(VENV)/test.done
	@PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=workflow/scripts \
		python tests/fuzzing.py $(INPUTS) $(KINDS) --jobs $(CORES)

# Slurm's plugin lies apart: with Slurm installed and stopped, every snakemake would wait for it.
test-cluster: $(VENV)/slurm/done
	@PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH="$(abspath $(VENV)/slurm)" \
		python -m pytest tests/cluster $(ARGS)

docs: $(VENV)/test.done
	@PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=tests:workflow/scripts sh -c \
		'python docs/generate/config_page.py && python docs/generate/rules_page.py && \
		python tests/messages.py'

gallery: run
	@$(BIN)/python docs/generate/gallery.py results/example

check: $(VENV)/test.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/snakefmt --check Snakefile workflow
	PATH="$(abspath $(BIN)):$$PATH" snakemake --lint
	$(BIN)/hadolint Dockerfile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and \
		f"$(PYTHON) is Python {v[0]}.{v[1]}; anomics needs 3.11 or newer (make PYTHON=python3.12)")'
	@$(PYTHON) -m venv $(VENV)

# torch first: without it the other packages would pull a CUDA build of several GB.
$(VENV)/run.done: requirements.txt constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (once, a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/test.done: requirements-dev.txt requirements-remote.txt $(VENV)/run.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

$(VENV)/slurm/done: requirements-slurm.txt $(VENV)/test.done
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target $(@D) -r requirements-slurm.txt
	@touch $@
