# Two commands: `make quickstart` and `make test`. Both need only Python; what they install goes into .venv, once.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
QUICKSTART_DIR ?= output/quickstart

.PHONY: install quickstart test lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check torch torchvision "setuptools>=77"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[draw,tensorboard,test,lint]"
	touch $@

quickstart: $(INSTALLED)
	$(PY) tools/train_net.py --config-file configs/quick_start/shapes_mask_rcnn.yaml OUTPUT_DIR $(QUICKSTART_DIR)
	$(PY) tools/visualize_json_results.py --dataset shapes_val \
		--input $(QUICKSTART_DIR)/inference/coco_instances_results.json \
		--montage $(QUICKSTART_DIR)/predictions.png --num 8
	@echo "Predictions beside their ground truth: $(QUICKSTART_DIR)/predictions.png"

lint: $(INSTALLED)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

clean:
	rm -rf $(VENV) build dist *.egg-info
