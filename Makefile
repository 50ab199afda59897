# SPDX-License-Identifier: Apache-2.0
# Packetwatch. `make help` lists the targets; what they need is installed from deps/.
PYTHON := /usr/bin/python3
TIERS := unit bpf netns machine
ARGS :=


.NOTPARALLEL:
.PHONY: help run deps deps-test deps-vm lint test test-all e2e-black e2e-white bench clean need-root

help: ## list the targets
	@sed -n 's/^\([a-z0-9%-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

run: need-root deps ## watch the default-route interface in the foreground; flags: ARGS='--mode observe'
	@$(PYTHON) -m packetwatch run $(ARGS)

test: need-root deps-test lint ## lint and every test but the kernels'
	$(PYTHON) -m pytest $(TIERS:%=tests/%)

test-all: TIERS += vm
test-all: deps-vm test ## the same and the kernels' (what CI runs)

test-%: deps-test ## one tier: make test-unit, test-bpf, test-netns, test-machine, test-vm
	$(PYTHON) -m pytest tests/$*

test-vm: deps-vm

e2e-black: need-root deps-test ## the monitor against the outside: commands, log and TCP only
	$(PYTHON) -m pytest tests/netns/test_e2e_black.py

e2e-white: need-root deps-test ## the same stories, looking into maps and counters
	$(PYTHON) -m pytest tests/netns/test_e2e_white.py

lint: deps-test ## types, style, C format, shell scripts
	$(PYTHON) -m mypy --strict packetwatch
	$(PYTHON) -m flake8
	clang-format --dry-run -Werror $$(find bpf -name '*.[ch]')
	shellcheck $$(grep -rlE '^#!/bin/(ba)?sh' --exclude-dir=build --exclude-dir=.git .)

bench: need-root deps-test ## measure, and write docs/benchmark.md
	@$(PYTHON) -m tests.bench $(ARGS)

deps: ## install what the monitor needs
	@deps/install run

deps-test: ## install what the tests need
	@deps/install run test

deps-vm: ## install what the kernels' tests need
	@deps/install run test vm

clean: ## remove what was built
	rm -rf build

need-root:
	$(if $(filter 0,$(shell id -u)),,$(error This needs root: sudo make $(MAKECMDGOALS)))

include packages.mk
