# Two targets do all the setting up: `make run` and `make test`.  `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
# How many of the slowest tests `make test` lists at its end.
SLOWEST ?= 15
# A longer limit for all tests of `make test-amd` or `make test-intel`, for a busy machine.
MINUTES ?=
KUT ?=
KUT_ARGS ?=

# What the machine was told for another environment (pip's user site, PYTHONPATH) stays out of ours.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK = 1

python := $(VENV)/bin/python
pip := $(python) -m pip --quiet
extension := pykvm/_core/_native.abi3.so
extension_inputs := setup.py $(wildcard pykvm/_core/build.py pykvm/_core/*.[ch] build-support/abi3/*.h)
extension_inputs := $(filter-out pykvm/_core/_native.c,$(extension_inputs))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

##@ Everyday

.PHONY: run
run: $(VENV)/run.stamp $(extension) guests ## run the first guest: guests/build/hello.elf
	$(python) -m pykvm guests/build/hello.elf

.PHONY: test
test: venv guests optional-linux lint types ## everything CI checks: lint, types, tests (PYTEST_ARGS="-k name")
	$(python) -m pytest --durations=$(SLOWEST) $(PYTEST_ARGS)

# Of what needs neither KVM nor much time: the facts of the repository, and rooms that are pure logic.
quick := tests/test_imports.py tests/test_repository.py tests/docs/test_docs_facts.py tests/exits \
         tests/result tests/tables tests/values/test_frozen.py tests/x86/test_x86_descriptors.py

.PHONY: quick quick-tests
quick: lint quick-tests ## ruff and the tests that need neither KVM nor much time; for pre-commit

quick-tests: venv
	@$(python) -m pytest -q -m "not kvm" $(quick)

.PHONY: lint
lint: venv ## ruff: lint, and check the format
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

.PHONY: types
types: venv ## mypy --strict
	$(VENV)/bin/mypy

.PHONY: format
format: venv ## ruff: format, and mend what it can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

.PHONY: guests
guests: ## build the guest programs into guests/build
	@$(MAKE) --no-print-directory -C guests

.PHONY: guest-linux test-linux optional-linux
guest-linux: venv ## build the Linux that tests boot, unless it is in the cache (about 5 minutes)
	@$(PYTHON) -B guests/linux/build.py

test-linux: guest-linux ## boot Debian's own kernel: an hour at most, and downloads 30 MB
	$(python) -m pytest -m stock -o faulthandler_timeout=0 tests/linux

optional-linux: # the same where its Debian packages are there
	@$(PYTHON) -B guests/linux/build.py --optional >/dev/null

.PHONY: test-amd test-intel
test-amd: venv guests optional-linux ## the tests of KVM on kvm_amd, in QEMU (docs/hosts.md)
	$(python) -B build-support/hosts/run_tests.py amd $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PYTEST_ARGS),-- $(PYTEST_ARGS))

test-intel: venv guests optional-linux ## some of them on kvm_intel, in Bochs
	$(python) -B build-support/hosts/run_tests.py intel $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PYTEST_ARGS),-- $(PYTEST_ARGS))

.PHONY: soak
soak: venv guests ## the long tests: kicks, signals, machines and random guests, for some minutes
	$(python) -m pytest -m soak tests/machine tests/linux

.PHONY: kvm-unit-tests
kvm-unit-tests: venv ## run kvm-unit-tests beside QEMU (KUT=PATH of a built checkout)
	@test -n "$(KUT)" || { echo "name the checkout: make kvm-unit-tests KUT=PATH"; exit 1; }
	PYTHONPATH=tests $(python) -m kvm_unit_tests "$(KUT)" $(KUT_ARGS)

.PHONY: bench
bench: venv guests ## measure against a C loop and QEMU (docs/performance.md)
	$(python) benchmarks/run.py

##@ Set-up and packaging

.PHONY: venv
venv: $(VENV)/dev.stamp $(extension) ## make .venv with pykvm in it, editable, and the development tools

.PHONY: wheel sdist
wheel sdist: venv ## build a wheel (for every Python from 3.10 on) or an sdist into dist/
	$(python) -m build --no-isolation --$@

.PHONY: clean distclean
clean: ## remove what was built, but for .venv
	-@$(MAKE) --no-print-directory -C guests clean
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f pykvm/_core/*.so pykvm/_core/*.o
	find pykvm tests examples benchmarks build-support -name __pycache__ -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	      /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	      /^[^#\t:=]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

$(python):
	@command -v $(PYTHON) >/dev/null || { echo "there is no $(PYTHON): apt-get install python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "pykvm needs Python 3.10 or later, and $(PYTHON) is $$($(PYTHON) -V 2>&1)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv"; exit 1; }
	@command -v gcc >/dev/null && test -e /usr/include/linux/kvm.h || \
	    { echo "pykvm has a part in C: apt-get install gcc libc6-dev binutils"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# run.stamp: pykvm and what it needs.  dev.stamp: that and the development tools.
$(VENV)/run.stamp: pyproject.toml setup.py | $(python)
	$(pip) install 'setuptools>=77.0.3' 'cffi>=1.15.1'
	$(pip) install --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml setup.py | $(python)
	$(pip) install 'setuptools>=77.0.3' 'cffi>=1.15.1'
	$(pip) install --no-build-isolation --editable '.[dev]'
	@touch $@ $(VENV)/run.stamp

$(extension): $(extension_inputs) | $(VENV)/run.stamp
	$(python) setup.py --quiet build_ext --inplace
	@touch $@
