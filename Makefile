# Two commands: `make quickstart` and `make test`. Both need only Python; what they install goes into .venv, once.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
OPERATORS := $(wildcard detlab/layers/csrc/*.h detlab/layers/csrc/*/*)
QUICKSTART_DIR ?= output/quickstart
# A torch other than the one in .venv, for `make test-torch`.
TORCH ?= 2.13.0
TORCH_VENV := $(VENV)-torch-$(TORCH)
TORCH_PY := $(TORCH_VENV)/bin/python

.PHONY: install quickstart test test-torch lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py $(OPERATORS)
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
	$(VENV)/bin/clang-format --dry-run -Werror $(OPERATORS) $(wildcard tests/layers/csrc/*)

test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2

# The library that .venv's torch built must serve another one as it is: there is no compiler, and its hash is compared.
test-torch: $(INSTALLED) $(TORCH_VENV)/.installed
	sha256sum detlab/layers/libdetlab_cpu-*.so > $(TORCH_VENV)/built.sha256
	CXX=none DETLAB_OPS=compiled OMP_NUM_THREADS=1 \
		$(TORCH_PY) -m pytest -n 2 -o addopts="-m 'not slow'" tests/layers/test_nms.py tests/layers/test_roi_align.py \
		$(filter-out %_build.py %_library.py,$(wildcard tests/layers/test_ops_*.py))
	sha256sum --check $(TORCH_VENV)/built.sha256

$(TORCH_VENV)/.installed:
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_PY) -m pip install --quiet --disable-pip-version-check torch==$(TORCH) numpy pytest pytest-xdist
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-torch-* build dist *.egg-info
