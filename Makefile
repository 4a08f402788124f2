# `make` or `make help` lists the targets. Only Go, git and make are needed to build; tests and the demo also want root on
# a Debian machine, and install the packages they need.

# The chart's appVersion too; a test compares them.
VERSION ?= 0.1.0
# Below its own name the image has no registry: what runs it decides where it is kept.
IMAGE ?= quarry-storage/quarry:$(VERSION)
# Passed to every `go test`, for instance GOTESTFLAGS='-run NAME'.
GOTESTFLAGS ?=
# How tests are shown as they end: testname, standard-verbose (as go test -v) or another of gotestsum's. What failed, and what
# was skipped and why, is said once more at the end.
GOTESTFORMAT ?= testname
# Nodes of the demo's cluster.
NODES ?= 3
# Releases of Debian that test-fresh tries.
FRESH ?= bookworm,trixie

# Static binaries, and one way of compiling for programs and tests alike: what one target compiled, the next one finds.
export CGO_ENABLED := 0

BIN := $(CURDIR)/bin
# The commit that is built, with -dirty behind it where something was changed; empty outside of a checkout.
COMMIT := $(shell git describe --always --abbrev=40 --dirty --exclude '*' 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
# The modules of the repository: the product, and what tests it (kept apart, so that none of that is in the product's go.mod).
MODULES := . test

.DEFAULT_GOAL := help
.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

##### Build

.PHONY: build
build: ## Build bin/quarry and bin/kubectl-quarry (static)
	go build -ldflags "$(LDFLAGS)" -o $(BIN)/ ./cmd/...

.PHONY: image
image: filesystem-tools build ## Make dist/quarry-image.tar, without any daemon or registry
	go -C test run ./cmd/mkimage -binary $(BIN)/quarry -tag $(IMAGE) -version $(VERSION) -o $(CURDIR)/dist/quarry-image.tar

# Asked for before anything is built, so that a machine without them says so in its first seconds.
.PHONY: filesystem-tools
filesystem-tools:
	@go -C test run ./cmd/packages filesystems

# Where the files of a release will be found.
RELEASE_URL ?= https://github.com/quarry-storage/quarry/releases/download/v$(VERSION)
RELEASE := dist/release
# The programs are built with nothing of this machine in them; the image is of this machine's platform, with its packages.
.PHONY: release
release: filesystem-tools ## Make dist/release: programs for amd64 and arm64, image, chart, checksums, what all is made of
	rm -rf $(RELEASE)
	set -e; for arch in amd64 arm64; do \
	  GOOS=linux GOARCH=$$arch go build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)" -o $(RELEASE)/programs/linux_$$arch/ ./cmd/...; done
	go -C test run ./cmd/mkimage -binary $(CURDIR)/$(RELEASE)/programs/linux_$$(go env GOARCH)/quarry -tag $(IMAGE) \
	  -version $(VERSION) -o $(CURDIR)/$(RELEASE)/quarry-image_$(VERSION)_linux_$$(go env GOARCH).tar
	go -C test run ./cmd/release -version $(VERSION) -commit "$(COMMIT)" -time $$(git log -1 --format=%ct) -url $(RELEASE_URL) \
	  -root $(CURDIR) -programs $(CURDIR)/$(RELEASE)/programs -o $(CURDIR)/$(RELEASE)

.PHONY: generate
generate: ## Generate deepcopy functions and CRDs from api/, and docs/reference
	go tool controller-gen object paths=./api/...
	go tool controller-gen crd paths=./api/... output:crd:dir=charts/quarry/crds
	go generate ./provisioner/parameters
	go test ./cmd/quarry -run Reference -update

.PHONY: clean
clean: ## Remove what was built
	rm -rf $(BIN) dist

##### Check

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/misspell ## gofmt and golangci-lint over all modules, misspell over the documents
	@unformatted=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	@set -e; for m in $(MODULES); do echo "lint $$m"; (cd $$m && $(BIN)/golangci-lint run --config $(CURDIR)/.golangci.yml ./...); done
	@git ls-files --cached --others --exclude-standard '*.md' | grep -v ^docs/reference/ | xargs $(BIN)/misspell -error

# What a developer runs, pinned in a module of its own.
# golangci-lint takes about a minute and a half of one processor, once.
$(BIN)/golangci-lint: test/dev/go.mod test/dev/go.sum
	go -C test/dev build -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(BIN)/misspell: test/dev/go.mod test/dev/go.sum
	go -C test/dev build -o $@ github.com/golangci/misspell/cmd/misspell

.PHONY: verify-generate
verify-generate: ## Check that what is generated is what is committed
	@dir=$$(mktemp -d) && trap 'rm -rf "$$dir"' EXIT && \
	cp -r api charts/quarry/crds docs/reference "$$dir" && $(MAKE) --no-print-directory generate && \
	if ! diff -r api "$$dir/api" || ! diff -r charts/quarry/crds "$$dir/crds" || ! diff -r docs/reference "$$dir/reference"; then \
	  echo "generated files were out of date; they are current now: look at them and commit them"; exit 1; fi

##### Test

# How often a test that failed is run once more, alone. A test that passes then is a race, in it or in the code, and is said in
# the stage's last lines; on a developer's machine it fails.
RERUNS ?= 0
# $(1): packages, $(2): flags of go test.
gotest = $(BIN)/gotestsum --format $(GOTESTFORMAT) --rerun-fails=$(RERUNS) --rerun-fails-max-failures=6 --packages "$(1)" -- $(GOTESTFLAGS) $(2)
$(BIN)/gotestsum: test/dev/go.mod test/dev/go.sum
	go -C test/dev build -o $@ gotest.tools/gotestsum

# A stage: its name, and what to do when it fails. In one line, so that the list of stages can be read below.
define stage
@printf '\n==> %s\n' '$(1)'
@$(MAKE) --no-print-directory $(2) || { printf '\n==> FAILED: %s\n    alone again: make %s\n    %s\n' '$(1)' '$(2)' '$(3)'; exit 1; }
endef

.PHONY: test
test: root ## Everything: lint, unit, root, image, chart, other kernels, a real Kubernetes (needs root)
	$(call stage,set-up: packages and the programs of the testbed,test-setup,the lines above say what is missing; a second run goes on where this one stopped)
	$(call stage,the same set-up on a machine that has nothing,test-fresh FRESH=bookworm,the lines above say which program no target installs)
	$(call stage,gofmt go vet and linters,lint,the lines above say where)
	$(call stage,generated files,verify-generate,commit what make generate writes)
	$(call stage,tests that need no root,test-unit,add GOTESTFLAGS="-run NAME" for one test)
	$(call stage,tests on this kernel,test-root,losetup -l and findmnt show what a test left behind)
	$(call stage,parallel operations under the race detector,test-race,the lines above say what raced)
	$(call stage,chart and examples,test-chart,helm template charts/quarry shows what is rendered)
	$(call stage,image,test-image,the lines above say what is missing)
	$(call stage,tests on other kernels,test-vm,go -C test run ./cmd/machine setup prepares the machine)
	$(call stage,the controller with many nodes,test-scale,the ends of all logs are in the lines above)
	$(call stage,a real Kubernetes,test-e2e,go -C test run ./cmd/testbed logs shows what each program printed)
	@printf '\n==> all tests passed\n'

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "this needs root (loop devices, mounts, namespaces): sudo make"; exit 1; }

.PHONY: test-setup
test-setup: test-packages ## Install the packages and build the programs that tests run: Kubernetes, containerd, sidecars, kernels
	go -C test run ./cmd/testbed build
	go -C test run ./cmd/machine setup

.PHONY: test-packages
test-packages: root
	@go -C test run ./cmd/packages testbed machine race

.PHONY: test-fresh
test-fresh: root ## The set-up of demo and test in root filesystems of Debian 12 and 13 that have Go, git and make alone
	go -C test run ./cmd/fresh -suites $(FRESH)

.PHONY: test-unit
test-unit: $(BIN)/gotestsum ## Tests that need no root
	$(call gotest,$$(go list ./... | grep -v /nodeagent))

.PHONY: test-root
test-root: $(BIN)/gotestsum root filesystem-tools ## Tests of the node agent on this kernel: loop devices, filesystems, mounts
	$(call gotest,./nodeagent/... ./csi/...,-count=1 -p 1 -timeout 20m)

# The store's tests in which goroutines meet; a test of cmd/quarry says when one is
# missing here.
STORE_RACES := Books|Parallel|Group|Pressure|SameID|IsNotWaitedFor|AtOnce|FrozenPool|FreezeThatEnds|ForATree|ForADisk|HungPool|DoesNotReturn|ManyFiles|NotOnlineBefore|WhileOthersAreDeleted|TestWatch
.PHONY: test-race
test-race: $(BIN)/gotestsum root ## The store's parallel operations under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(call gotest,./nodeagent/backend ./nodeagent/keylock,-count=1 -race -timeout 10m)
	CGO_ENABLED=1 $(call gotest,./nodeagent/store,-count=1 -race -timeout 10m -run '$(STORE_RACES)')

.PHONY: test-chart
test-chart: $(BIN)/gotestsum ## Tests of the Helm chart, the examples, and the commands of the pages
	cd test && $(call gotest,./chart,-count=1) # Go's cache does not see files outside the module

.PHONY: test-image
test-image: $(BIN)/gotestsum filesystem-tools ## Tests of the container image and its tools, and of what a release is packed of
	cd test && $(call gotest,./cmd/mkimage ./cmd/release)

.PHONY: test-vm
test-vm: $(BIN)/gotestsum root ## Tests that want another kernel (quotas of ext4 and xfs, power cuts), in QEMU
	cd test && $(call gotest,./machine/... ./vm/...,-count=1 -timeout 30m -p 1)

.PHONY: test-scale
test-scale: $(BIN)/gotestsum ## The controller against a real API server and simulated agents of 20 nodes; make bench-scale has the large ones
	cd test && $(call gotest,./measure/... ./scale/...,-count=1 -timeout 10m)

.PHONY: test-e2e
test-e2e: $(BIN)/gotestsum root image ## End-to-end tests in a real Kubernetes on this machine; a cluster of the demo's is taken down
	go -C test run ./cmd/testbed down
	cd test && $(call gotest,./testbed/... ./sanity/... ./e2e/...,-count=1 -timeout 60m -p 1 -parallel 4)

##### Run

.PHONY: demo
demo: root demo-packages image ## A cluster of NODES nodes on this machine with Quarry and the EaseMesh example; stays up
	go -C test run ./cmd/demo --nodes $(NODES) --image $(CURDIR)/dist/quarry-image.tar

.PHONY: demo-packages
demo-packages: root
	@go -C test run ./cmd/packages testbed

.PHONY: demo-down
demo-down: root ## End the demo's cluster; nothing is left behind
	go -C test run ./cmd/testbed down

# What to measure, with commas: bind, peers, pods, io, delete, footprint. Empty: everything.
BENCH ?=
.PHONY: bench
bench: root image ## Measure beside a provisioner that does no work, others, and the host's disk: make bench BENCH=bind,io
	@go -C test run ./cmd/packages testbed bench
	go -C test build -o $(BIN)/bench ./cmd/bench
	cd test && $(BIN)/bench $(if $(BENCH),-bench $(BENCH))

.PHONY: bench-look
bench-look: root ## Measure what the agent's look at 1,000 volumes takes of a core (part of make bench; QUARRY_BENCH_LOOK_VOLUMES=100 for fewer)
	go test $(GOTESTFLAGS) -count=1 -timeout 20m -run '^$$' -bench Look -benchtime 60x ./nodeagent/store

# What it is asked for on the command line; NODES by itself is the demo's.
SCALE := $(if $(filter command%,$(origin NODES)),-nodes $(NODES)) $(if $(VOLUMES),-volumes $(VOLUMES))
.PHONY: bench-scale
bench-scale: build ## Measure the controller in large clusters: make bench-scale NODES=5000 VOLUMES=100000 (default: 10, 100 and 1,000 nodes)
	go -C test build -o $(BIN)/scale ./cmd/scale
	cd test && $(BIN)/scale $(SCALE)
