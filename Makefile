# Two commands do everything on a fresh machine: `make demo` and `make test`.
# The tested set of versions is in constraints.txt; everything lives in .venv and runs/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test lint clean help

help:
	@echo "make demo   data -> training -> scored model -> report, on this machine (about 15 minutes on two cores)"
	@echo "make test   all tests"
	@echo "make lint   ruff and the architecture rules"
	@echo "make clean  remove the environment (keeps runs/)"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "MedM-VL needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp per set of extras: installs run once, and again when the pins or pyproject change.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing medmvl[demo] into $(VENV)"
	@$(PIP) --editable ".[demo]"
	@touch $@

# DeepSpeed builds against the torch that is already there; an isolated build would fetch another torch.
# Of MedMNIST only its evaluator is used, which needs none of what the package asks for (torchvision, fire).
$(VENV)/.dev: $(VENV)/.demo
	@echo "installing medmvl[demo,dev,deepspeed] into $(VENV)"
	@$(PIP) --editable ".[demo,dev]"
	@$(PIP) --no-build-isolation --editable ".[deepspeed]"
	@$(PIP) --no-deps medmnist
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/medmvl demo --out runs/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist src/*.egg-info
