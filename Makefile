# What builds, checks and tests ztmesh. A machine needs Go, Python 3 with venv, bash
# and make; the recipes build or download everything else, by exact version.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

GO ?= go
# More arguments for go test, such as TESTFLAGS='-run TestDecide -v'.
TESTFLAGS ?=
TEST_TIMEOUT ?= 15m
# Flags of the mutation check, such as MUTANTS='-every 10'.
MUTANTS ?=
# make demo KEEP=1 leaves the demo running until it is interrupted.
KEEP ?=

# The Envoy of the tests and the demo.
export ZT_ENVOY := $(CURDIR)/.tools/envoy/bin/envoy
# buf finds its plugins here, and the suites what they run.
export PATH := $(CURDIR)/.bin:$(PATH)

# Tools are built again when what pins them, or Go itself, changes.
key = $(shell { cat $(1)/go.mod $(1)/go.sum $(wildcard $(1)/*.go); $(GO) env GOVERSION; } | cksum | cut -d' ' -f1)
TOOLS := .bin/.tools-$(call key,tools)
BUF := .bin/.buf-$(call key,tools/buf)
# What make test-components runs.
OPA := .bin/.opa-$(call key,tools/opa)
OIDC := .bin/.oidc-$(call key,tools/oidc)

# -race needs a C compiler and its headers.
RACE = $(shell printf '\043include <stdlib.h>\n' | $$($(GO) env CC) -E - >/dev/null 2>&1 && echo -race)

##@ Everyday
.PHONY: help
help: ## Show this list
	@awk -F':.*## ' '/^##@/ {print "\n" substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: build
build: ## Build the static binaries into bin/
	mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

.PHONY: demo
demo: build envoy ## Run the demo; KEEP=1 leaves it running
	$(GO) build -o .bin/demo ./deploy/demo
	KEEP='$(KEEP)' .bin/demo

.PHONY: generate
generate: $(TOOLS) $(BUF) protos ## Generate Go, OpenAPI and docs/spec/reference.md from the .proto files
	tools/generate.sh

.PHONY: fmt
fmt: $(TOOLS) ## Format the Go code
	gofumpt -w .

.PHONY: clean
clean: ## Remove everything that the Makefile makes
	rm -rf bin .bin .third_party .tools

##@ Checks
.PHONY: check check-format check-vet check-lint check-proto check-modules
check: check-format check-proto check-modules check-vet check-lint ## Check everything that needs no test run

check-format: $(TOOLS)
	@out=$$(gofumpt -l .); if [ -n "$$out" ]; then echo "not formatted (run make fmt):"; echo "$$out"; exit 1; fi

# The suites behind build tags are checked with the rest.
check-vet:
	$(GO) vet -tags $(SUITES) ./...
	$(GO) vet -tags seededbugs ./store/...

check-lint: $(TOOLS)
	staticcheck -tags $(SUITES) ./...

check-proto: $(TOOLS) $(BUF) protos
	buf lint proto
	tools/generate.sh --check

check-modules:
	$(GO) mod tidy -diff
	$(GO) mod verify

##@ Tests
.PHONY: test
test: envoy ## Run the tests, against a real Envoy
	@race='$(RACE)'; if [ -z "$$race" ]; then \
	  echo 'test: no C compiler with headers, so without -race'; export CGO_ENABLED=0; fi; \
	set -x; $(GO) test $$race -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./...

# The folders that have test files with a line that matches.
folders = { grep -rlE --include='*_test.go' --exclude-dir='.?*' '$(1)' . || true; } | xargs -r -n1 dirname | sort -u

# A suite is the packages that have test files with its build tag.
SUITES := system,components
.PHONY: test-system test-components
test-system: envoy ## Run the suite against the real binaries, as processes
test-components: envoy $(OPA) $(OIDC) ## Run the suite against real components: OPA, an OpenID provider
test-components: race = $(RACE)
test-system test-components: test-%:
	@dirs=$$($(call folders,^//go:build .*\b$*\b)); \
	if [ -z "$$dirs" ]; then echo "test-$*: this suite has no cases yet"; exit 0; fi; \
	set -x; $(GO) test -tags $* $(race) -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $$dirs

.PHONY: mutation-check
mutation-check: ## Check that mutants of the lowering are caught; takes long
	$(GO) run ./controlplane/zttest/mutants $(MUTANTS)

# How many pairs of spec and request; make test judges 20,000.
N ?= 1000000
SEED ?=
.PHONY: fuzz-authz
fuzz-authz: envoy ## Judge N random requests by evaluator and Envoy; SEED replays
	ZT_PAIRS='$(N)' ZT_SEED='$(SEED)' $(GO) test -count 1 -timeout 0 -v $(TESTFLAGS) -run '^TestRandom$$' ./controlplane/zttest/judge

# The long forms of two suites of make test-system. CYCLES and ROUNDS bound them, and so
# does MINUTES where it is given.
CYCLES = $(if $(filter file,$(origin N)),10000,$(N))
DISKS = $(if $(filter file,$(origin N)),2000,$(N))
ROUNDS = $(if $(filter file,$(origin N)),20,$(N))
MINUTES ?=
.PHONY: crash netsplit
crash: ## Kill real servers at every failpoint, N times; SEED replays
	ZT_CYCLES='$(CYCLES)' ZT_MINUTES='$(MINUTES)' ZT_SEED='$(SEED)' $(GO) test -tags system -count 1 -timeout 0 -v $(TESTFLAGS) ./controlplane/zttest/crash

netsplit: ## Cut links between real servers, N rounds of each fault; SEED replays
	ZT_ROUNDS='$(ROUNDS)' ZT_SEED='$(SEED)' $(GO) test -tags system -count 1 -timeout 0 -v $(TESTFLAGS) ./controlplane/zttest/netsplit

KILLS = $(if $(filter file,$(origin N)),100,$(N))
.PHONY: kill-leader
kill-leader: envoy ## Kill the leader N times under requests through real Envoys
	ZT_KILLS='$(KILLS)' $(GO) test -tags system -count 1 -timeout 0 -v $(TESTFLAGS) ./controlplane/zttest/killleader

# How many times a disk goes wrong: as often in memory, and in MINUTES under real servers.
.PHONY: disk
disk: ## Cut power, break and fill disks, N times in memory and under real servers; SEED replays
	ZT_DISK_CYCLES='$(DISKS)' ZT_SEED='$(SEED)' $(GO) test -count 1 -timeout 0 -v $(TESTFLAGS) -run '^TestDisk(Power|Damage)$$' ./store
	ZT_DISK_CYCLES='$(DISKS)' ZT_MINUTES='$(or $(MINUTES),20)' ZT_SEED='$(SEED)' $(GO) test -tags system -count 1 -timeout 0 -v $(TESTFLAGS) ./controlplane/zttest/disk

# How many operations; make test does 20,000.
OPS ?= 5000000
.PHONY: lin lin-bugs
lin: lin-bugs ## Judge the histories of clusters under faults; OPS operations, SEED replays
	ZT_OPS='$(OPS)' ZT_MINUTES='$(MINUTES)' ZT_SEED='$(SEED)' $(GO) test -count 1 -timeout 0 -v $(TESTFLAGS) -run '^TestLinearizable$$' ./store

lin-bugs: ## Check that the short form of it finds each bug that is sown
	$(GO) test -tags seededbugs -count 1 -timeout $(TEST_TIMEOUT) -v $(TESTFLAGS) -run '^TestSeededBugs$$' ./store

# A benchmark reports against a goal of the project by printing a line
#   figure NAME VALUE UNIT goal <=|>= LIMIT met|short
# once per round; the last round counts. The goals inform, they fail nothing.
.PHONY: bench bench-policy bench-store
bench: envoy ## Run the benchmarks; ends with the figures that have goals
bench: dirs = $$($(call folders,^func Benchmark))
bench-policy: envoy ## Run those of the policy: compiling it, and Envoys that enforce it
bench-policy: dirs = ./controlplane/policy ./controlplane/compile ./controlplane/zttest/policybench
bench-store: ## Run those of the store: against bare raft, and of large specs
bench-store: dirs = ./store ./store/state ./controlplane/refusals
bench bench-policy bench-store:
	@mkdir -p .bin; \
	$(GO) test -run '^$$' -bench . -benchmem -timeout $(TEST_TIMEOUT) $(TESTFLAGS) $(dirs) | tee .bin/$@.txt; \
	awk 'match($$0, /figure [^ ]+ [^ ]+ [^ ]+ goal (<=|>=) [^ ]+ (met|short)/) { \
	  line = substr($$0, RSTART, RLENGTH); split(line, f, " "); \
	  if (!(f[2] in last)) order[++n] = f[2]; last[f[2]] = line } \
	  END { for (i = 1; i <= n; i++) print last[order[i]] }' .bin/$@.txt

# Each word is a workload: SERVICESxPROXIES, and flags of ztbench.
FLEET ?= 100x10:--plaintext,--rounds=20 100x10:--against=none,--rounds=20 \
  250x20:--plaintext,--rounds=10,--against=floor,--only=cold,--only=grant,--only=wide \
  1000x1:--plaintext,--rounds=10,--against=floor,--only=cold,--only=grant,--only=wide
FLEET_REPORT ?= docs/bench/fleet.md
.PHONY: bench-fleet bench-fleet-large
bench-fleet-large: FLEET = 1000x10:--against=none,--rounds=3,--timeout=10m
bench-fleet-large: FLEET_REPORT = docs/bench/fleet-large.md
bench-fleet-large: ## Run 10,000 simulated proxies with TLS, which come back at once
bench-fleet: ## Run simulated fleets and 30 Envoys; writes docs/bench, ends with the figures
bench-fleet bench-fleet-large: envoy
	@mkdir -p .bin $(dir $(FLEET_REPORT)); CGO_ENABLED=0 $(GO) build -trimpath -o .bin/ztbench ./cmd/ztbench
	@tools/bench-fleet.sh $(FLEET_REPORT) $(FLEET)

##@ What the recipes use
.PHONY: envoy
envoy: ## Get the Envoy that the tests and the demo run
	@tools/envoy.sh .tools/envoy

.PHONY: tools
tools: $(TOOLS) $(BUF) ## Build the tools into .bin/

.PHONY: protos
protos: ## Copy the third-party .proto files into .third_party/
	@tools/protos.sh .third_party/proto

# Built beside their place and moved: a tool that runs is not written over.
define build_tools
	@mkdir -p .bin
	@echo 'building the tools of $(1) (once)'
	@new=$$(mktemp -d .bin/new.XXXXXX); trap 'rm -rf "$$new"' EXIT; \
	GOWORK=off $(GO) build -C $(1) -buildvcs=false -o "$(CURDIR)/$$new/" tool; \
	mv "$$new"/* .bin/
	@rm -f $(2)*; touch $@
endef

$(TOOLS):
	$(call build_tools,tools,.bin/.tools-)

$(BUF):
	$(call build_tools,tools/buf,.bin/.buf-)

$(OPA):
	$(call build_tools,tools/opa,.bin/.opa-)

$(OIDC):
	$(call build_tools,tools/oidc,.bin/.oidc-)
