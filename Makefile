# `make test`, `make demo`, `make docs`, ...: each sets up its own .venv first, when missing or out of date.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

# mlx's Linux wheel links a slow reference BLAS. What our package finds in its place is preloaded, so that
# programs that import MLX before our package have it too; asked when a recipe runs, since .venv is there then.
BLAS = $(shell $(BIN)/python -m llm_mlx_promptcache.models.blas .venv/blas)
RUN = $(BLAS) $(BIN)

# Tests run side by side in so many processes, each with one thread of BLAS: on two cores that is faster than
# one process with two threads, and the tests of faults mostly wait for processes of their own.
# Files that cost most begin (tests/durations.py), so that none of them is left alone at the end.
WORKERS ?= 2
# Bytecode is kept whatever the environment says: without it each process compiles all that it imports.
PYTEST = $(BLAS) OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What `make soak` runs: all of it takes long; name files to run some.
SOAK_TESTS ?= tests
DURATION_TESTS ?= tests

# Pages with parts that cog writes out of the code; it runs what stands in them, from docs/.
COG_PAGES := README.md docs/commands.md docs/comparison.md docs/disk.md docs/drafts.md docs/host.md docs/startup.md

.PHONY: quick test durations langchain-versions soak wheels wheel-test compat-test agent-packages llm-plugins device-test demo bench cog cog-check docs lint format clean recording release-check card

# What to run after each change: something of every room, in less than a minute.
quick: .venv/ready
	$(PYTEST) -q -m "not slow and not real_model and not soak"

test: .venv/ready
	$(PYTEST)

# Tests of drafts have them here too; all others have them in `make test`, and in `make soak DRAFTS=on`.
soak: DRAFTS ?= off
soak: .venv/ready
	SOAK=1 DRAFTS=$(DRAFTS) $(PYTEST) -m soak $(SOAK_TESTS)

# Which tests quick leaves out, by what they cost here: write it anew when it takes too long.
# DURATION_TESTS names files or folders where not all is to be run; what is listed of others stays.
durations: .venv/ready
	@mkdir -p build && rm -f build/durations.jsonl
	TEST_DURATIONS=$(CURDIR)/build/durations.jsonl $(PYTEST) -q -m "not real_model" $(DURATION_TESTS)
	$(BIN)/python tests/durations.py build/durations.jsonl

# Both of the following at once.
wheels: .venv/ready
	SOAK=1 $(PYTEST) -m soak tests/test_wheel.py

# The wheel, built once and tested as built, each time in an environment of its own.
wheel-test: .venv/ready
	SOAK=1 $(RUN)/python -m pytest -m soak tests/test_wheel.py -k "newest or holds or sdist"

# All that a release asks: tag, version and changelog agree, links lead somewhere, and wheel and sdist work as built.
# `make release-check TAG=v1.2.3`, once that tag is set.
release-check: lint wheels
	@test -n "$(TAG)" || { echo "make: which tag? make release-check TAG=v1.2.3"; exit 1; }
	RELEASE_TAG=$(TAG) $(BIN)/python -m pytest -q tests/test_release.py tests/test_docs.py -k "release or links or version or changelog or tag"

# The same with the oldest versions that pyproject.toml allows.
compat-test: .venv/ready
	SOAK=1 $(RUN)/python -m pytest -m soak tests/test_wheel.py -k oldest

# Agents of other packages (deepagents and more), each installed into an environment of its own.
agent-packages: .venv/ready
	SOAK=1 $(RUN)/python -m pytest -rP -m soak tests/frontends/test_agent_packages.py

# Other plugins of llm (toolboxes, fragments, templates, commands, Datasette's), each installed likewise.
llm-plugins: .venv/ready
	SOAK=1 $(RUN)/python -m pytest -rP -m soak tests/frontends/test_llm_plugins.py

# What holds on every device, on MLX's default one: a Mac's GPU.
device-test: .venv/ready
	$(PYTEST) -n 0 -v tests/engine/test_any_device.py
	$(RUN)/python benchmarks/device.py
	$(RUN)/llm mlx-cached bench

demo: .venv/ready
	$(RUN)/python benchmarks/demo.py

# Writes docs/benchmarks.md and docs/figures/; SHORT=1 is the short form, ONLY="disk trie" runs some.
bench: .venv/ready
	$(RUN)/python benchmarks/report.py $(if $(SHORT),--short) $(if $(ONLY),--only $(ONLY))

# The terminal's recording in the README: the real commands in a new home, drawn into docs/terminal.svg.
recording: .venv/ready
	$(RUN)/python docs/recording.py

# What other sites show of a link to ours, from the demo's figures.
card: .venv/ready
	$(BIN)/python docs/card.py

# The site, in build/site; a warning is an error.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: .venv/ready cog-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin
	$(BIN)/mypy --strict --config-file= --no-error-summary --cache-dir .mypy_cache/typed_user $(CURDIR)/tests/frontends/typed_user.py

# Writes those parts and the picture of the rooms anew.
cog: .venv/ready
	$(BIN)/cog -r -I docs $(COG_PAGES)
	$(BIN)/python docs/rooms.py

cog-check: .venv/ready
	$(BIN)/cog --check --diff -I docs $(COG_PAGES)

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/ready: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: Python 3.11 or newer is needed; set PYTHON=/path/to/python3"; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv .venv || \
		{ echo "make: '$(PYTHON) -m venv' failed; on Debian: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[blas,langchain,dev]'
	@touch $@

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# The adapter's fast tests with the oldest langchain-core and langchain that we claim and with the
# newest 1.x, each over .venv's packages.
LANGCHAIN := 1.7.*/1.4.0 1.*/1.*
LANGCHAIN_PARTS := answers fields history messages settings stored structured summarization summary_limits tools words
LANGCHAIN_TESTS := $(foreach part,langchain $(LANGCHAIN_PARTS:%=langchain_%),tests/frontends/test_$(part).py)
langchain-versions: .venv/ready
	@mkdir -p build
	@set -e; for v in $(foreach v,$(LANGCHAIN),'$(v)'); do \
		core="langchain-core==$${v%/*}"; agents="langchain==$${v#*/}"; \
		echo "$$core $$agents"; e="build/langchain-$${v%%.\**}"; $(BIN)/python -m venv --clear "$$e"; \
		site="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
		inner="$$("$$e/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
		echo "import site; site.addsitedir('$$site')" > "$$inner/base.pth"; \
		"$$e/bin/python" -m pip install --quiet --upgrade --no-deps "$$core" "$$agents" langchain-protocol; \
		"$$e/bin/python" -c 'from importlib.metadata import version as v; print("has", v("langchain-core"), v("langchain"))'; \
		"$$e/bin/python" -m pytest -q -p no:cacheprovider -m "not real_model" $(LANGCHAIN_TESTS); done

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
