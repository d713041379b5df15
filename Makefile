# The few commands that a person needs; what they do in detail is cargo's and xtask's business.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PG_BIN := /usr/lib/postgresql/15/bin
PG_HEADERS := /usr/include/postgresql/15/server/postgres.h
# postgresql-15 holds the contrib extensions and pgbench too.
APT_PACKAGES := postgresql-15 postgresql-server-dev-15 gcc make libc6-dev
CARGO_TOOLS := cargo-nextest cargo-deny
# While this file exists, installing PostgreSQL makes no cluster.
NO_CLUSTER := /etc/postgresql-common/createcluster.d/palimpsest.conf

CARGO ?= cargo
RUN := $(CARGO) run --quiet --locked
PAL := $(RUN) --package palimpsest-console --bin pal --
DEMO := $(RUN) --package palimpsest-integration --bin demo --
# How long make fuzz goes on.
SECONDS ?= 60
# Where make up keeps everything.
DATA ?= ./data
# Where make install puts pal and, below lib/palimpsest, the redo library that it runs.
INSTALL_ROOT ?= $(or $(CARGO_INSTALL_ROOT),$(CARGO_HOME),$(HOME)/.cargo)
PG_MAJOR := 15

# On a build machine compiled dependencies outlive the clone.
ifeq ($(CI),true)
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/palimpsest/target
endif

.PHONY: help deps apt cargo-tools redo build programs up down demo test judge bench fuzz install clean

help:
	@echo 'make deps     install what is missing (as root), and build the redo library'
	@echo 'make build    build everything'
	@echo 'make up       all services and a demo PostgreSQL, in the foreground'
	@echo 'make down     stop them from another terminal'
	@echo 'make demo     compare every page with PostgreSQL once, and end'
	@echo 'make test     every check that must pass before a change lands'
	@echo 'make judge    the judges in full size'
	@echo 'make bench    the benchmarks; one alone: ONLY=compaction, smaller: WAL_MIB=512 DATABASE_MIB=100'
	@echo 'make fuzz     one parser under a fuzzer: TARGET=name SECONDS=60'
	@echo 'make install  put pal into the place for cargo programs'
	@echo 'make clean    remove what was built'

deps: apt cargo-tools redo

# A missing package is noticed by its files, so that a PostgreSQL from elsewhere counts as well.
apt:
	@missing=()
	for path in $(PG_BIN)/postgres $(PG_BIN)/pgbench $(PG_BIN)/pg_waldump $(PG_HEADERS); do
		test -e "$$path" || missing+=("$$path")
	done
	for program in gcc make; do
		command -v "$$program" > /dev/null || missing+=("$$program")
	done
	if (( $${#missing[@]} == 0 )); then exit 0; fi
	echo "missing: $${missing[*]}"
	if (( $$(id -u) != 0 )); then
		echo 'install it by: sudo apt-get install --no-install-recommends $(APT_PACKAGES)'
		exit 1
	fi
	mkdir -p '$(dir $(NO_CLUSTER))'
	echo 'create_main_cluster = off' > '$(NO_CLUSTER)'
	trap 'rm -f "$(NO_CLUSTER)"' EXIT
	export DEBIAN_FRONTEND=noninteractive
	apt-get update
	apt-get install --yes --no-install-recommends $(APT_PACKAGES)

cargo-tools:
	@for tool in $(CARGO_TOOLS); do
		if command -v "$$tool" > /dev/null; then continue; fi
		if (( $$(id -u) != 0 )); then
			echo "missing: $$tool; install it by: cargo install --locked $$tool"
			exit 1
		fi
		env --unset=CARGO_TARGET_DIR $(CARGO) install --locked "$$tool"
	done

redo:
	$(MAKE) --directory=compute/redo

build: redo
	$(CARGO) build --workspace --locked

# Only what runs; pal is built with it, because the demo prints commands for it.
programs: redo
	$(CARGO) build --locked --package palimpsest-console --package palimpsest-integration \
		--bin pal --bin demo

up: programs
	@$(DEMO) up --data '$(DATA)'

down:
	@$(PAL) down --data '$(DATA)'

demo: programs
	@$(DEMO) check

test: redo
	$(CARGO) xtask ci

judge: redo
	$(CARGO) xtask verify $(JUDGE)

# As it is shipped: optimised. Takes some minutes the first time, and wants the machine for itself.
bench: redo
	$(CARGO) build --quiet --locked --release --package palimpsest-integration --bin bench --bin service
	$(CARGO) build --quiet --locked --release --package palimpsest-console --bin pal
	@$(RUN) --release --package palimpsest-integration --bin bench -- --append-to docs/benchmarks.md \
		$(if $(ONLY),--only $(ONLY)) $(if $(WAL_MIB),--wal-mib $(WAL_MIB)) $(if $(DATABASE_MIB),--database-mib $(DATABASE_MIB))
	$(if $(ONLY),,$(CARGO) bench --quiet --locked --package palimpsest-integration --package palimpsest-read)

# One parser under libFuzzer, with what earlier runs found added to the committed corpus. The address
# space is limited too, for memory that C code takes.
fuzz:
	@test -n '$(TARGET)' || { echo 'make fuzz TARGET=name [SECONDS=60]; names:'; ls fuzz/fuzz_targets; exit 64; }
	cd fuzz
	mkdir -p 'found/$(TARGET)' artifacts
	$(CARGO) build --quiet --release --bin '$(TARGET)'
	ulimit -v 4194304
	$(CARGO) run --quiet --release --bin '$(TARGET)' -- \
		'found/$(TARGET)' 'corpus/$(TARGET)' -artifact_prefix='artifacts/$(TARGET)-' \
		-max_total_time='$(SECONDS)' -max_len=65536 -rss_limit_mb=1024 -timeout=10

install: redo
	$(CARGO) install --locked --path console --root '$(INSTALL_ROOT)'
	install -d '$(INSTALL_ROOT)/lib/palimpsest/$(PG_MAJOR)'
	install compute/redo/build/$(PG_MAJOR)/palimpsest_redo.so \
		compute/redo/build/$(PG_MAJOR)/mkcontrol '$(INSTALL_ROOT)/lib/palimpsest/$(PG_MAJOR)'

clean:
	$(CARGO) clean
	$(MAKE) --directory=compute/redo clean

# Recipes are scripts, not single lines.
.ONESHELL:
