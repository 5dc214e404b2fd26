# umoci-mount: `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

GO ?= go
GOTESTFLAGS ?=
PREFIX ?= /usr/local
DESTDIR ?=
UMOCI_SYMLINK ?=
FUZZTIME ?= 30s
CRASHROUNDS ?= 1000
STRESSTIME ?= 10m
SOAKTIME ?= 1h
SEED ?= 0
PJDFSTEST ?=
UNIONMOUNT ?=
BENCHTIME ?= 1s
ROWS ?=
BENCHUSER ?=
BENCHIMAGE ?= large
BENCHRUNS ?= 5
IMAGES ?= $(or $(UMOCI_MOUNT_TESTDATA),/var/tmp/umoci-mount-images)

VERSION := $(shell git describe --tags --dirty 2>/dev/null || cat VERSION)
LDFLAGS := -s -w -X main.version=$(VERSION)
BIN := bin/umoci-mount

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.8.0

bindir := $(DESTDIR)$(PREFIX)/bin
mandir := $(DESTDIR)$(PREFIX)/share/man/man1
bashdir := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
zshdir := $(DESTDIR)$(PREFIX)/share/zsh/site-functions
fishdir := $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d

.PHONY: help build docs test test-race test-race-short images e2e test-posix crash stress soak demo install bench-images bench bench-quick bench-go fuzz lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  variables: PREFIX DESTDIR UMOCI_SYMLINK=1 (install), FUZZTIME (fuzz), CRASHROUNDS SEED (crash), STRESSTIME SEED (stress), SOAKTIME (soak),"
	@echo "             BENCHTIME (bench-go),"
	@echo "             IMAGES (where e2e keeps its images), GOTESTFLAGS (test)"

build: ## build bin/umoci-mount, statically
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/umoci-mount

docs: build ## write man pages and completions to build/
	rm -rf build/man build/completions
	mkdir -p build/man build/completions
	$(GO) run -tags man -ldflags '$(LDFLAGS)' ./cmd/umoci-mount build/man
	for name in umoci-mount umoci; do for shell in bash zsh fish; do \
		(exec -a $$name $(BIN) completion $$shell) > build/completions/$$name.$$shell; done; done

test: ## run the tests (as root for all of them; the rest skip with a reason); none from the cache: many run the program
	$(GO) test -count=1 -timeout 25m $(GOTESTFLAGS) ./...

test-race: ## run the tests under the race detector, whose processes need not wait a second at their end
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -count=1 -timeout 25m $(GOTESTFLAGS) ./...

test-race-short: ## the same with fewer rounds of what is random (-short)
	$(MAKE) test-race GOTESTFLAGS='-short $(GOTESTFLAGS)'

images: build ## make the real images of the end-to-end tests (root, needs a Debian mirror)
	tests/images/mkall.sh $(IMAGES)

e2e: images ## run the whole loop on real Debian images (root)
	UMOCI_MOUNT_E2E=1 UMOCI_MOUNT_TESTDATA=$(IMAGES) $(GO) test -v -count=1 -timeout 25m -run '^TestReal' ./tests

test-posix: ## each operation on each kind of object, as on a local disk; PJDFSTEST=DIR, UNIONMOUNT=DIR: those suites too (root)
	$(GO) test -count=1 -v -timeout 20m ./tests/matrix -every 1
	if [ -n "$(PJDFSTEST)" ]; then scripts/pjdfstest.sh "$(PJDFSTEST)"; scripts/pjdfstest.sh "$(PJDFSTEST)" --passthrough; else echo "pjdfstest: PJDFSTEST names no built copy: not run"; fi
	if [ -n "$(UNIONMOUNT)" ]; then scripts/unionmount.sh "$(UNIONMOUNT)"; else echo "unionmount-testsuite: UNIONMOUNT names no copy: not run"; fi

crash: ## kill the daemon CRASHROUNDS times under load, and commands at each call; cut the power (root)
	$(GO) test -count=1 -timeout 0 ./tests/crash -rounds $(CRASHROUNDS) -seed $(SEED)

stress: ## random operations for STRESSTIME, from SEED on: alone, against a local disk and overlayfs, from 8 processes (root)
	$(GO) test -count=1 -v -timeout 0 ./tests/stress -stresstime $(STRESSTIME) -seed $(SEED)

soak: ## eight processes load one mount for SOAKTIME, its daemon and a hundred files watched (root)
	$(GO) test -count=1 -v -timeout 0 -run EightProcesses ./tests/stress -soak $(SOAKTIME) -seed $(SEED)

demo: ## show the loop: mount, run under runc, edit, diff, repack (root)
	scripts/demo.sh

install: build docs ## install binary, man pages and completions below DESTDIR/PREFIX
	install -D -m 0755 $(BIN) $(bindir)/umoci-mount
	install -d $(mandir)
	install -m 0644 build/man/*.1 $(mandir)/
	for name in umoci-mount $(if $(UMOCI_SYMLINK),umoci); do \
		install -D -m 0644 build/completions/$$name.bash $(bashdir)/$$name; \
		install -D -m 0644 build/completions/$$name.zsh $(zshdir)/_$$name; \
		install -D -m 0644 build/completions/$$name.fish $(fishdir)/$$name.fish; done
	if [ -n "$(UMOCI_SYMLINK)" ]; then ln -sfn umoci-mount $(bindir)/umoci; \
		for page in umoci-mount.1 $$(cd build/man && ls | grep -vx -e umoci-mount.1 -e umoci-mount-mount.1); do \
			ln -sfn $$page $(mandir)/umoci$${page#umoci-mount}; done; fi # umoci-mount.1 is the program's

bench-images: images ## make the images of the measurements too (root, needs a Debian mirror)
	tests/images/mklarge.sh $(IMAGES)/images

bench: build bench-images ## measure beside umoci, overlayfs, fuse-overlayfs and igzip; ROWS=REGEXP, BENCHUSER, BENCHIMAGE, BENCHRUNS (root)
	$(GO) run ./internal/bench -bin $(BIN) -images $(IMAGES)/images -table docs/benchmarks.md -rows '$(value ROWS)' -user '$(BENCHUSER)' -image $(BENCHIMAGE) -runs $(BENCHRUNS)

bench-quick: build images ## the same on the small image, in two minutes (root)
	$(GO) run ./internal/bench -quick -out build/bench/quick -bin $(BIN) -images $(IMAGES)/images -rows '$(value ROWS)'

bench-go: ## run the benchmarks of the packages
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) ./...

fuzz: ## run each fuzz target for FUZZTIME, with files in memory where there is room for them
	if [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi; \
	grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' . | sort | while IFS=: read -r file func; do \
		echo "== $${func#func } ($${file%/*})"; \
		$(GO) test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$${file%/*}"; \
	done

lint: ## gofmt, go vet, staticcheck, govulncheck
	unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "gofmt -w: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) vet -tags man ./cmd/umoci-mount
	$(GO) run $(STATICCHECK) ./...
	out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1) && echo "$$out" || { echo "$$out"; \
		grep -q 'fetching vulnerabilities' <<<"$$out" && echo "vulnerabilities: NOT CHECKED, their database cannot be reached"; }

clean: ## remove what the targets here build
	rm -rf bin build
