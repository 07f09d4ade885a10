# `make demo` and `make test` install what is missing (Debian 12/13, Ubuntu 24.04, as root) and
# make .venv, whose bin/ebpfvpn runs this tree.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo test check wheel bpf .venv clean

# Looked up when used, for the compiler may be installed by the same run.
newest = $(or $(shell for v in {30..16}; do command -v $(1)-$$v && break; done),\
	$(error no $(1)-16 or newer here: run `tools/install test`, or install $(1)-19))
CLANG = $(call newest,clang)
CLANG_FORMAT = $(call newest,clang-format)

# The prefix map keeps the build machine's paths out of the objects.
BPF_CFLAGS = -O2 -g -Wall -Werror -target bpf -mcpu=v3 -Iebpf \
	-I/usr/include/$(shell uname -m)-linux-gnu -ffile-prefix-map=$(CURDIR)=.
BPF_PROGRAMS := $(wildcard ebpf/*.bpf.c)
BPF_TESTS := $(wildcard ebpf/tests/*.bpf.c)
BPF_SOURCES := $(wildcard ebpf/*.[ch] ebpf/tests/*.[ch] tools/*.c)
OBJECTS := $(BPF_PROGRAMS:ebpf/%.c=daemon/ebpfvpn/bpf/%.o) $(BPF_TESTS:ebpf/tests/%.c=build/%.o)

help:
	@echo "make demo    two nodes in two namespaces, and what they do"
	@echo "make test    every check and test"
	@echo "make check   the static checks alone"
	@echo "make bpf     compile the BPF objects"
	@echo "make wheel   a wheel with the objects in it, in dist/"
	@echo "make clean   remove what was built, .venv excepted"

demo:
	@tools/install demo
	@$(MAKE) --no-print-directory -s .venv bpf
	@tools/demo

test:
	@tools/install test
	@$(MAKE) --no-print-directory -s .venv bpf
	@$(MAKE) --no-print-directory -s check
	.venv/bin/pytest -n 4 --maxschedchunk 1

check: .venv
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	$(CLANG_FORMAT) --dry-run -Werror $(BPF_SOURCES)

wheel: .venv
	.venv/bin/pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w dist .

.venv: .venv/installed

.venv/installed: pyproject.toml
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

bpf: $(OBJECTS)

daemon/ebpfvpn/bpf/%.bpf.o: ebpf/%.bpf.c
	@mkdir -p $(@D) build/deps
	$(CLANG) $(BPF_CFLAGS) -MMD -MP -MF build/deps/$*.d -c $< -o $@

build/%.bpf.o: ebpf/tests/%.bpf.c
	@mkdir -p $(@D) build/deps
	$(CLANG) $(BPF_CFLAGS) -MMD -MP -MF build/deps/tests-$*.d -c $< -o $@

-include $(wildcard build/deps/*.d)

clean:
	rm -rf build dist daemon/ebpfvpn/bpf/*.o
