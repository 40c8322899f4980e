# Two commands set everything up on a fresh machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint bench device-arm64 device-image device-pythons schemas clean

demo: $(INSTALLED)
	$(BIN)/edgevlm compile demo --target host-cpu
	$(BIN)/edgevlm validate build/demo-host-cpu.edgevlm
	$(BIN)/edgevlm run build/demo-host-cpu.edgevlm --image docs/scene.png --prompt "What color is the cube?"

test: $(INSTALLED)
	$(MAKE) lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks

# The same bundles here and on an emulated ARM64 machine; docs/arm64.md says what is needed.
BUNDLES ?= build/demo-host-cpu.edgevlm build/demo-snapdragon-8-gen3.edgevlm
EVERY ?= 10

device-arm64: $(INSTALLED) $(BUNDLES)
	$(BIN)/python tests/device/arm64/proof.py --every $(EVERY) $(BUNDLES)

# The packages of Dockerfile.jetson for aarch64 (network, python3.10, python3.12); its install steps, emulated,
# when `make device-arm64` has left its Debian root.
device-image: $(INSTALLED)
	$(BIN)/python tests/device/jetson_image.py $(addprefix --root ,$(wildcard build/arm64/root))

# The wheel with base dependencies alone on other Pythons, as a device installs it.
PYTHONS ?= python3.10 python3.12 python3.13

device-pythons: $(INSTALLED) build/demo-host-cpu.edgevlm
	tests/device/pythons.sh build/demo-host-cpu.edgevlm $(PYTHONS)

build/demo-host-cpu.edgevlm: | $(INSTALLED)
	$(BIN)/edgevlm compile demo --target host-cpu --no-evidence

build/demo-snapdragon-8-gen3.edgevlm: | $(INSTALLED)
	$(BIN)/edgevlm compile demo --target snapdragon-8-gen3 --no-evidence

# JSON Schemas for editors; a test checks that they are up to date.
schemas: $(INSTALLED)
	$(BIN)/edgevlm schema recipe > docs/recipe.schema.json
	$(BIN)/edgevlm schema target > docs/target.schema.json
	$(BIN)/edgevlm schema sweep > docs/sweep.schema.json

# torch first and by exact version, so that no other package pulls a different build of it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[compile,search,tensorrt,litert,litert-lm,cluster,dev]'
	touch $@

clean:
	rm -rf build dist $(VENV)
