# `make` lists the targets. Their environments are created once, in directories beside this file, with uv (installed if missing).

UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .venv-uv/bin/uv)
BIN := .venv/bin
ARGS ?=
# Variables of this make must not reach a make that a test starts.
MAKEOVERRIDES =
# A file's tests share fixtures, so they stay in one process. Each end-to-end test has processes of its own.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile
unexport ARGS N
# With bytecode, each of the processes that tests start imports in a third of the time.
export PYTHONDONTWRITEBYTECODE =
# Fewer generated examples: other versions of mitmproxy and Python run the same tests as the newest ones.
FEWER := HYPOTHESIS_PROFILE=quick

CLIENTS := .venv-openai-1.0/.ready .venv-openai-0.28/.ready .venv-node/.ready

# An installed Python is preferred to a download.
make_venv = export UV_VENV_CLEAR=1; \
	UV_PYTHON_DOWNLOADS=never $(UV) venv --quiet --python 3.13 $(1) 2>/dev/null \
	|| UV_PYTHON_DOWNLOADS=never $(UV) venv --quiet --python 3.12 $(1) 2>/dev/null \
	|| $(UV) venv --quiet --python 3.13 $(1)

.PHONY: help demo run scale doctor web test quick bench-test image-test check lint oldest versions soak fuzz bench format lock clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready ## show a chat and a stream through the proxy to a simulated Azure
	@$(BIN)/python tools/demo.py $(ARGS)

run: .venv/.ready ## start the proxy (set AZURE_OPENAI_ENDPOINT; ARGS="..." for mitmdump's options)
	@$(BIN)/azure-openai-proxy $(ARGS)

scale: .venv/.ready ## N=4: four processes of the proxy behind one port, with HAProxy (one process uses one core)
	@$(BIN)/python tools/scale.py $(if $(N),-n $(N)) $(ARGS)

doctor: .venv/.ready ## test a client's connection through the proxy, with OPENAI_BASE_URL, HTTPS_PROXY and OPENAI_API_KEY (ARGS="--model NAME")
	@$(BIN)/azure-openai-proxy doctor $(ARGS)

web: .venv/.ready ## run the demo in mitmweb, which shows every request in a browser
	@$(BIN)/python tools/demo.py --web $(ARGS)

test: .venv/.ready $(CLIENTS) ## run all tests, unit and end to end, on the newest mitmproxy (ARGS="-k name" selects some)
	@$(BIN)/pytest $(if $(ARGS),$(ARGS),-n auto tests/unit tests/e2e/test_client_side.py --cov)
	@$(if $(ARGS),,$(BIN)/pytest $(PARALLEL) tests/e2e --ignore tests/e2e/test_client_side.py)

quick: .venv/.ready ## run the unit tests only, with fewer generated examples and without those marked as slow
	@$(FEWER) $(BIN)/pytest -q -n auto -m "not slow" tests/unit $(ARGS)

bench-test: .venv/.ready ## run the tests of the bench, each of which measures for some seconds (five minutes)
	@AZURE_OPENAI_PROXY_BENCH_TEST=yes $(BIN)/pytest tests/e2e/test_bench.py $(ARGS)

image-test: .venv/.ready ## build the image from Debian packages, run it and stop it (needs root, debootstrap, buildah, podman, runc)
	@AZURE_OPENAI_PROXY_IMAGE_TEST=yes $(BIN)/pytest tests/e2e/test_image.py $(ARGS)

check: lint oldest test ## run lint and all tests, on the oldest and the newest mitmproxy

lint: .venv/.ready ## check style, formatting, types, import rules, generated documents and language
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@report=$$($(BIN)/lint-imports --no-cache --no-logo 2>&1) || { echo "$$report"; exit 1; }
	@$(BIN)/python tools/private_names.py
	@$(BIN)/python tools/operations_table.py --check
	@$(BIN)/python tools/options_table.py
	@$(BIN)/python tools/observability_tables.py --check
	@$(BIN)/python tools/check_prose.py

# All unit tests, and the end-to-end tests of what depends most on mitmproxy: its modes, tools and flow files. `make oldest ARGS=tests` runs the
# others too.
ON_MITMPROXY := tests/unit $(patsubst %,tests/e2e/test_%.py,console gateway inspector kept_secrets life mitmweb mitmweb_browser replay \
	streaming views ways websockets without_fast_path)

# The test helpers of the oldest mitmproxy leave event loops unclosed, so that warning must not fail a test.
oldest: .venv-oldest/.ready $(CLIENTS) ## run the unit tests and those of what depends on mitmproxy on the oldest one (ARGS=tests runs all)
	@$(FEWER) .venv-oldest/bin/pytest -q -W ignore::pytest.PytestUnraisableExceptionWarning $(PARALLEL) $(if $(ARGS),$(ARGS),$(ON_MITMPROXY))

# What depends on private API, on the versions in `compat.TESTED` that the other targets do not run on.
PATCHES := tests/unit/mitmproxy_patches tests/e2e/test_without_fast_path.py
MITMPROXIES := 12.1 12.2
PYTHONS = $(shell $(BIN)/python -c "import sys; from azure_openai_proxy.mitmproxy_patches.compat import TESTED; \
	print(*(each for each in TESTED['Python'] if each != '{}.{}'.format(*sys.version_info)))")
find_python = { UV_PYTHON_DOWNLOADS=never $(UV) python find $(1) 2>/dev/null || ls $(HOME)/.pyenv/versions/$(1).*/bin/python 2>/dev/null; } | tail -n 1

versions: .venv/.ready $(MITMPROXIES:%=.venv-mitmproxy-%/.ready) ## run the tests of the patches on each mitmproxy between the oldest and the newest, and on each other Python
	@for each in $(MITMPROXIES); do echo "mitmproxy $$each:"; \
		$(FEWER) .venv-mitmproxy-$$each/bin/pytest -q -W ignore::pytest.PytestUnraisableExceptionWarning -W "ignore:Attempting to mutate a Context" $(PARALLEL) $(PATCHES) || exit 1; done
	@for each in $(PYTHONS); do echo "Python $$each:"; \
		if [ -z "$$($(call find_python,$$each))" ]; then echo "skipped, because it is not installed"; continue; fi; \
		$(MAKE) --no-print-directory .venv-python-$$each/.ready && $(FEWER) .venv-python-$$each/bin/pytest -q $(PARALLEL) $(PATCHES) || exit 1; done

soak: .venv/.ready ## ten minutes of load on three backends with faults (ARGS="--steady": every kind of request, without faults)
	@$(BIN)/python tools/soak.py $(ARGS)

fuzz: .venv/.ready ## 200,000 hostile requests over HTTP/1.1, HTTP/2 and WebSocket, about a quarter of an hour (ARGS="--requests 5000 --seed 7")
	@PYTHONPATH=tools $(BIN)/python -m fuzz $(ARGS)

bench: .venv/.ready ## compare this proxy with bare mitmdump: speed, delay, CPU time, memory (ARGS="--quick" takes a minute)
	@PYTHONPATH=tools $(BIN)/python -m bench $(ARGS)

format: .venv/.ready ## correct style and formatting, as far as ruff can
	@$(BIN)/ruff check --fix-only --quiet
	@$(BIN)/ruff format

# The locks are valid for every platform and Python from 3.12. They name no index; pip and uv use the configured one.
lock: export UV_CUSTOM_COMPILE_COMMAND = make lock
lock: compile = $(UV) pip compile --quiet --upgrade --universal --python-version 3.12 --generate-hashes --no-emit-index-url --no-emit-find-links
lock: | $(filter .venv-uv/%,$(UV)) ## make the lock files anew, from the newest versions
	@$(compile) pyproject.toml --output-file requirements.lock
	@$(compile) pyproject.toml --all-extras --output-file requirements-extras.lock
	@$(compile) pyproject.toml --group dev --output-file requirements-dev.lock
	@$(compile) pyproject.toml --group dev --constraint tests/oldest.in --output-file requirements-oldest.lock
	@for each in $(MITMPROXIES); do $(compile) pyproject.toml --group dev --constraint tests/versions/mitmproxy-$$each.in \
		--output-file tests/versions/mitmproxy-$$each.lock || exit 1; done
	@$(compile) tests/clients/openai-1.0.in --output-file tests/clients/openai-1.0.lock
	@$(compile) tests/clients/openai-0.28.in --output-file tests/clients/openai-0.28.lock

clean: ## remove all environments, caches and builds
	@rm -rf .venv .venv-* .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	@find addon tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

.venv-uv/bin/uv:
	@echo "Fetching uv ..."
	@python3 -m venv .venv-uv
	@.venv-uv/bin/python -m pip install -qq --disable-pip-version-check uv

.venv/.ready: requirements-dev.lock | $(filter .venv-uv/%,$(UV))
	@echo "Setting up .venv ..."
	@$(call make_venv,.venv)
	@$(UV) pip sync --quiet --require-hashes --python .venv requirements-dev.lock
	@$(UV) pip install --quiet --offline --no-deps --no-build-isolation --python .venv --editable .
	@touch $@

.venv-oldest/.ready: requirements-oldest.lock | $(filter .venv-uv/%,$(UV))
	@echo "Setting up .venv-oldest ..."
	@$(call make_venv,.venv-oldest)
	@$(UV) pip sync --quiet --require-hashes --python .venv-oldest requirements-oldest.lock
	@$(UV) pip install --quiet --offline --no-deps --no-build-isolation --python .venv-oldest --editable .
	@touch $@

.venv-mitmproxy-%/.ready: tests/versions/mitmproxy-%.lock | $(filter .venv-uv/%,$(UV))
	@echo "Setting up .venv-mitmproxy-$* ..."
	@$(call make_venv,.venv-mitmproxy-$*)
	@$(UV) pip sync --quiet --require-hashes --python .venv-mitmproxy-$* $<
	@$(UV) pip install --quiet --offline --no-deps --no-build-isolation --python .venv-mitmproxy-$* --editable .
	@touch $@

.venv-python-%/.ready: requirements-dev.lock | $(filter .venv-uv/%,$(UV))
	@echo "Setting up .venv-python-$* ..."
	@UV_VENV_CLEAR=1 $(UV) venv --quiet --python "$$($(call find_python,$*))" .venv-python-$*
	@$(UV) pip sync --quiet --require-hashes --python .venv-python-$* $<
	@$(UV) pip install --quiet --offline --no-deps --no-build-isolation --python .venv-python-$* --editable .
	@touch $@

# Older generations of the openai SDK, which the end-to-end tests drive.
.venv-openai-%/.ready: tests/clients/openai-%.lock | $(filter .venv-uv/%,$(UV))
	@echo "Setting up .venv-openai-$* ..."
	@$(call make_venv,.venv-openai-$*)
	@$(UV) pip sync --quiet --require-hashes --python .venv-openai-$* $<
	@touch $@

# The SDK for Node.js. Without npm or a registry its tests are skipped.
.venv-node/.ready: tests/clients/package.json
	@mkdir -p .venv-node && cp $< .venv-node/
	@if command -v npm >/dev/null; then echo "Setting up .venv-node ..."; \
		npm install --prefix .venv-node --silent --no-audit --no-fund --no-package-lock || echo "... failed: its tests will be skipped"; fi
	@touch $@
