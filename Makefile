# The parts of .ci/run, one target each. PYTHON is the interpreter of an environment that is set up ("make build").
PYTHON ?= python
CXX ?= g++
BUILD := build

.PHONY: build tools test slow bench bench-smoke peers gpu-check lint format type sanitize dist-check ci

build:  ## Install the package, editable, with everything to test, measure and check it.
	$(PYTHON) -m pip install -e ".[test,bench,dev]"

EXTRAS := import tomllib; x = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
tools:  ## Install what "build" installs besides the package and its tests, without compiling the package again.
	$(PYTHON) -m pip install -q $$($(PYTHON) -c '$(EXTRAS); print(*x["bench"], *x["dev"])')

test:
	$(PYTHON) -m pytest

slow:
	$(PYTHON) -m pytest -m slow

bench:  ## A few minutes; see docs/performance.md. Peers are measured if "make peers" has been run.
	$(PYTHON) -m pytest benchmarks

bench-smoke:  ## Check that the benchmarks still run: once each, without gates.
	XCFAST_BENCH_SMOKE=1 XCFAST_PEERS= $(PYTHON) -m pytest -q benchmarks --benchmark-markdown $(BUILD)/smoke.md

peers:  ## Make a virtual environment for each trainer that the benchmarks compare with, under .peers/.
	scripts/peers

gpu-check:  ## On a machine with a CUDA device: build, run the tests that need it, and measure; the table is build/gpu-check.md.
	PYTHON=$(PYTHON) scripts/gpu-check

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.hpp')

type:  ## Check the types of the package, and the extension's stubs against the extension.
	$(PYTHON) -m mypy
	if [ -f xcfast/_core.pyi ]; then $(PYTHON) -m mypy.stubtest --mypy-config-file pyproject.toml --allowlist scripts/stubtest-allowlist xcfast._core; fi

# Each csrc/tests/NAME.cpp is a program of its own: exit status 0 is a pass.
CXXFLAGS := -std=c++17 -O1 -g -Wall -Wextra -Werror -ffp-contract=off -fno-omit-frame-pointer -pthread -Icsrc
TESTS := $(basename $(notdir $(wildcard csrc/tests/*.cpp)))
THREADED_TESTS := $(filter-out test_kernels test_half,$(TESTS))
HEADERS := $(shell find csrc -name '*.hpp')
# gcc's thread sanitizer fails if the kernel randomizes addresses over more bits than it expects.
FIXED_ADDRESSES := $(shell setarch -R true 2>/dev/null && echo setarch -R)

sanitize: $(TESTS:%=run-address-%) $(THREADED_TESTS:%=run-thread-%)
	@test -n "$(TESTS)" || { echo "no C++ tests in csrc/tests"; exit 1; }

run-address-%: $(BUILD)/sanitize/address/%
	UBSAN_OPTIONS=print_stacktrace=1 timeout 300 $<

run-thread-%: $(BUILD)/sanitize/thread/%
	TSAN_OPTIONS=halt_on_error=1 timeout 300 $(FIXED_ADDRESSES) $<

$(BUILD)/sanitize/address/%: csrc/tests/%.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all $< -o $@

$(BUILD)/sanitize/thread/%: csrc/tests/%.cpp $(HEADERS)
	@mkdir -p $(@D)
	$(CXX) $(CXXFLAGS) -fsanitize=thread $< -o $@

.PRECIOUS: $(BUILD)/sanitize/address/% $(BUILD)/sanitize/thread/%

dist-check:  ## Build sdist and wheel, test the wheel outside the checkout.
	PYTHON=$(PYTHON) scripts/dist-check

ci:
	.ci/run
