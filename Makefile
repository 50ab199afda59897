# SPDX-License-Identifier: Apache-2.0
# Packetwatch. `make help` lists the targets; what they need is installed from deps/.
PYTHON := /usr/bin/python3
# Both run two tests at a time. First what looks at what the kernel does, and when; the longest begins.
TIERS := machine netns bpf unit
# Then what keeps both processors busy: machines that install something.
INSTALLING := package puppet
# Also run by CI: other kernels, a Puppet server with agents.
LONG := vm fleet
ARGS :=

.NOTPARALLEL:
.PHONY: help run deps deps-test deps-all deps-vagrant lint test test-all test-slow test-vagrant e2e-black e2e-white bench clean need-root

help: ## list the targets
	@sed -n 's/^\([a-z0-9%-]*\):.*## /\1|/p' Makefile packages.mk | awk -F'|' '{ printf "make %-13s %s\n", $$1, $$2 }'

run: need-root deps ## watch the default-route interface in the foreground; flags: ARGS='--mode observe'
	@$(PYTHON) -m packetwatch run $(ARGS)

test: need-root deps-test lint build/gems/bin/fpm ## lint and every test but those that take long
	@status=0; \
	for tiers in "$(TIERS:%=tests/%)" "$(INSTALLING:%=tests/%)"; do \
		$(PYTHON) -m pytest --numprocesses 2 --dist loadgroup $$tiers || status=$$?; \
	done; \
	exit $$status

test-all: INSTALLING += $(LONG)
test-all: deps-all test ## the same, other kernels and a fleet with a Puppet server (what CI runs)

test-%: deps-all ## one tier: make test-unit, -bpf, -netns, -machine, -package, -puppet, -vm, -fleet
	$(PYTHON) -m pytest tests/$*

test-slow: need-root deps-test ## scans that are really slow, for four minutes
	$(PYTHON) -m pytest tests/slow

test-vagrant: deps-vagrant ## Vagrant for real: one machine of the Vagrantfile under plain qemu
	$(PYTHON) -m pytest tests/vagrant

e2e-black: need-root deps-test ## the monitor against the outside: commands, log and TCP only
	$(PYTHON) -m pytest tests/netns/test_e2e_black.py

e2e-white: need-root deps-test ## the same stories, looking into maps and counters
	$(PYTHON) -m pytest tests/netns/test_e2e_white.py

lint: deps-test ## types, style, C format, shell scripts, Puppet
	$(PYTHON) -m mypy --strict packetwatch
	$(PYTHON) -m flake8
	clang-format --dry-run -Werror $$(find bpf -name '*.[ch]')
	shellcheck $$(grep -rlE '^#!/bin/(ba)?sh' --exclude-dir=build --exclude-dir=.git .)
	$(PYTHON) -m pytest -q tests/puppet/test_module.py -k 'lint or syntax'

bench: need-root deps-test ## measure, and write docs/benchmark.md
	@$(PYTHON) -m tests.bench $(ARGS)

deps: ## install what the monitor needs
	@deps/install run

deps-test: ## install what the tests need
	@deps/install run test package puppet

deps-all: ## install what the long tests need, too
	@deps/install run test package puppet vm

deps-vagrant: ## install what the machines of the Vagrantfile need
	@deps/install run test package puppet vagrant

clean: ## remove what was built
	rm -rf build

need-root:
	$(if $(filter 0,$(shell id -u)),,$(error This needs root: sudo make $(MAKECMDGOALS)))

include packages.mk
