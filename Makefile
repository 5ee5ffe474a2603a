# The few commands that do everything. Each makes what it needs: `make demo` and `make test` work on a fresh checkout.
# Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# One thread a test process: the two processes share the cores, and idle threads that spin would take them from each other.
TEST_THREADS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
PYTEST := $(TEST_THREADS) $(BIN)/python -m pytest -n 2

BENCHMARKS := \
  how_far_from_its_own_arithmetic where_does_the_time_go how_does_it_grow_with_area how_does_it_grow_with_threads \
  against_a_light_window_transformer against_other_runtimes what_an_export_costs \
  how_long_is_a_training_step which_scan_at_which_length how_fast_is_a_gpu \
  what_durable_tiles_cost does_memory_stay_flat what_does_a_cluster_cost \
  how_large_a_halo how_far_can_a_result_be_trusted what_does_consistency_change what_the_engine_costs_beside_the_network \
  does_it_choose_well

.PHONY: help demo test test-long check format bench gpu wheels qgis-plugin web docs site gallery readme-picture clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "repmamba needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	@touch $@

CPP := $(wildcard src/repmamba/kernels/*.cpp src/repmamba/kernels/*.h tests/kernels/*.cpp)
KERNELS := hatch_build.py $(filter src/%,$(CPP))

.venv/installed: .venv/made pyproject.toml constraints.txt src/repmamba/__init__.py $(KERNELS)  # __init__: the version
	@echo "Installing into .venv; torch is large, so this may take some minutes."
	$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	@touch $@

demo: .venv/installed  ## enlarge the bundled scene and draw bicubic beside the result, in demo/
	@mkdir -p demo
	$(BIN)/repmamba upscale examples/colorado.tif -o demo/colorado_x4.tif --overwrite
	@$(BIN)/python examples/compare.py examples/colorado.tif demo/colorado_x4.tif -o demo/comparison.png >/dev/null
	@echo
	@echo "The scene at four times the resolution:  $(CURDIR)/demo/colorado_x4.tif"
	@echo "Bicubic beside it, in one picture:       $(CURDIR)/demo/comparison.png"

test: .venv/installed-dev  ## the tests, in under ten minutes on two cores
	$(PYTEST)

test-long: .venv/installed-dev  ## the full counts of kills, mutated files and random cases
	$(PYTEST) -m long -o faulthandler_timeout=3600

check: .venv/installed-dev  ## lint, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: .venv/installed-dev  ## write the format that `make check` asks for
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

.venv/installed-bench: .venv/installed-dev
	$(PIP) --editable '.[bench]'
	@touch $@

# One that lacks what it needs, or ends otherwise than predicted, says so in a line, and the next one follows. The pages
# show what is in benchmarks/results, so the answers of another machine go elsewhere.
RESULTS ?= runs/bench

bench: .venv/installed-bench  ## the benchmarks, one after the other; their answers go into runs/bench, or RESULTS=FOLDER
	@for question in $(BENCHMARKS); do \
	  echo; echo "== $$question"; \
	  $(BIN)/python "benchmarks/$$question.py" --json "$(RESULTS)/$$question.json" \
	  || echo "$$question: no answer, or not the predicted one"; \
	done

gpu: .venv/installed-dev  ## on a machine with a GPU: its tests and timings, in at most ten minutes
	$(BIN)/python benchmarks/how_fast_is_a_gpu.py --json "$(RESULTS)/how_fast_is_a_gpu.json"

wheels: .venv/installed-dev  ## a wheel for each platform, in dist/; the first time takes some minutes
	@for target in $$($(BIN)/python hatch_build.py); do \
	  REPMAMBA_TARGET=$$target $(BIN)/python -m build --wheel --no-isolation --outdir dist . || exit 1; \
	done

qgis-plugin:  ## the plugin of QGIS as a file to install, dist/repmamba_qgis.zip
	@mkdir -p dist
	@rm -rf dist/repmamba_qgis.zip plugins/qgis/repmamba_qgis/__pycache__
	cd plugins/qgis && $(PYTHON) -m zipfile -c ../../dist/repmamba_qgis.zip repmamba_qgis

# The first weights are the default of the page.
WEB_WEIGHTS ?= x4

.venv/installed-onnx: .venv/installed
	$(PIP) --editable '.[onnx]'
	@touch $@

web/node_modules: web/package.json web/package-lock.json
	cd web && npm ci --ignore-scripts
	@touch $@

web: .venv/installed-onnx web/node_modules  ## the page that enlarges pictures in a browser, in web/dist; needs Node.js
	@rm -rf web/models && mkdir web/models
	@for weights in $(WEB_WEIGHTS); do \
	  $(BIN)/repmamba export $$weights -o web/models/$$weights.onnx --json > web/models/$$weights.json || exit 1; \
	done
	cd web && npm run --silent check && npm run --silent build

docs: .venv/installed-dev  ## update the generated parts of the pages: options, formats, rooms
	$(BIN)/python docs/write.py

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]'
	@touch $@

site: .venv/installed-docs  ## the pages as a site, in build/site; a broken link fails
	$(BIN)/zensical build --clean --strict
	@if [ -f web/dist/index.html ]; then cp -r web/dist/. build/site/browser/; fi

gallery: .venv/installed  ## the pictures of the gallery, from the reference data
	$(BIN)/python -W ignore docs/gallery.py

readme-picture: .venv/installed  ## the picture of the README, from the bundled picture
	@mkdir -p demo
	$(BIN)/repmamba upscale examples/intersection.png -o demo/intersection_x4.png --overwrite
	$(BIN)/python -W ignore examples/compare.py examples/intersection.png demo/intersection_x4.png \
	  -o docs/intersection.png --window 60,60,104,76

clean:  ## remove the environment, what was built, the demo's results and all caches
	rm -rf .venv build demo dist web/node_modules web/models web/dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .cache
