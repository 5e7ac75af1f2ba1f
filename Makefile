# Building needs Go and nothing else. 'make race' needs a C compiler as well,
# 'make test' tests the sandbox of processes only where bubblewrap is installed, and
# 'make test-backends' installs the servers that it needs, as root on Debian 12.

GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.0
GOTESTSUM = gotest.tools/gotestsum@v1.13.0

# $(call gotest,FLAGS,PACKAGES). With RERUN=1, as in CI, up to eight tests that fail are tried
# again, twice at most; those that then pass are listed as such at the end of the output.
RERUN =
gotest = $(if $(RERUN),$(GO) run $(GOTESTSUM) --format pkgname --rerun-fails=2 --rerun-fails-max-failures=8 \
	--packages="$(2)" -- $(1),$(GO) test $(1) $(2))

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS = -s -w -X main.version=$(VERSION)
# What no task waits for, or waits for less than for the back end behind it, is compiled small, without inlining:
# 2.2 MB less to carry to an edge box. Others' packages, then ours.
SMALL = github.com/antlr4-go/... github.com/dgraph-io/... github.com/danielgtaylor/huma/... github.com/goccy/go-yaml/... \
	github.com/google/cel-go/... github.com/huin/... github.com/koron/... github.com/libp2p/go-libp2p-kad-dht/... github.com/libp2p/go-libp2p/p2p/discovery/... \
	github.com/libp2p/go-libp2p/p2p/host/... github.com/libp2p/go-libp2p/p2p/protocol/... github.com/miekg/... \
	github.com/moby/... github.com/prometheus/... github.com/spf13/... go.yaml.in/... \
	google.golang.org/protobuf/... k8s.io/... sigs.k8s.io/... \
	github.com/jointcloud/pcm/adapters/adaptertest github.com/jointcloud/pcm/adapters/container \
	github.com/jointcloud/pcm/adapters/generate github.com/jointcloud/pcm/adapters/kubernetes \
	github.com/jointcloud/pcm/adapters/plugin/... github.com/jointcloud/pcm/adapters/rest/... \
	github.com/jointcloud/pcm/adapters/process github.com/jointcloud/pcm/adapters/slurm \
	github.com/jointcloud/pcm/adapters/supervisor github.com/jointcloud/pcm/adapters/wasm \
	github.com/jointcloud/pcm/cmd/pcm github.com/jointcloud/pcm/node github.com/jointcloud/pcm/node/api \
	github.com/jointcloud/pcm/node/rules

.PHONY: all build test test-backends backends-adapters backends-suites backends-peers backends-matrix test-plugins judge race lint verify generate bench chaos chaos-teeth demo demo-backends demo-describe clean

all: build

build:
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' $(SMALL:%=-gcflags=%=-l) -o bin/pcm ./cmd/pcm

# About twelve minutes on two cores; no network but loopback, and no servers of others.
test:
	PCM_TEST_SERVERS=none $(call gotest,-timeout 20m,./...)

# Every adapter against its real server, then peers whose back ends fail. What it finds is what docs/adapters.md
# says, or it fails; with MATRIX=-write it writes that page anew. The long form takes
# podman and what else not every run has: make test-backends LONG="podman keystone"
BACKENDS = docker slurm kubernetes
LONG =
MATRIX =
COMMA := ,
SPACE := $(subst ,, )

# What needs servers is tested whole, of other adapters only the suite: 'make test' has the rest. Most
# of these tests wait for servers, so that more run at once than there are cores.
SERVED = ./adapters/adaptertest/server ./adapters/container ./adapters/kubernetes ./adapters/slurm
UNSERVED = ./adapters/generate ./adapters/plugin ./adapters/process ./adapters/rest ./adapters/wasm

test-backends:
	.ci/backends sandbox $(BACKENDS) $(LONG)
	@mkdir -p bin && rm -f bin/matrix.json
	PCM_TEST_REQUIRE=bubblewrap,$(subst $(SPACE),$(COMMA),$(strip $(BACKENDS) $(LONG))) \
	PCM_TEST_MATRIX=$(CURDIR)/bin/matrix.json $(MAKE) --no-print-directory -k -j3 backends-adapters backends-suites backends-peers; \
	tests=$$?; $(MAKE) --no-print-directory backends-matrix && exit $$tests

# The parts of test-backends: the matrix last, the others at once.
backends-adapters:
	$(call gotest,-count=1 -timeout 20m -p 2 -parallel 3,$(SERVED))
backends-suites:
	$(call gotest,-count=1 -timeout 20m -p 1 -parallel 2 -run '^Test(Conformance|Keystone)',$(UNSERVED))
backends-peers:
	$(call gotest,-count=1 -timeout 20m -parallel 3 -run '^Test(Docker|Slurm|Kube)',./node/nodetest)
backends-matrix:
	$(GO) run ./adapters/adaptertest/matrix -run bin/matrix.json $(MATRIX)

# Generated plug-ins in Python and TypeScript, by their own languages' tools: fetches some packages of theirs. One of them
# is tested with a server of OpenSSH on loopback.
test-plugins: build
	.ci/backends plugins
	@mkdir -p bin && rm -f bin/plugins.json
	PCM=$(CURDIR)/bin/pcm PCM_TEST_REQUIRE=go,python,typescript PCM_TEST_MATRIX=$(CURDIR)/bin/plugins.json \
	$(call gotest,-count=1 -timeout 40m -run '^Test(ToolChains|Queue|SSHHost)',./adapters/generate)
	$(GO) run ./adapters/adaptertest/matrix -run bin/plugins.json -some $(MATRIX)

# The fake ModelArts and its object store, held against the clients that Huawei Cloud publishes, and the fake
# OpenStack against gophercloud: modules of their own, since the former have 250 MB, which are fetched once.
JUDGES = adapters/rest/fake/modelarts/judge adapters/rest/fake/openstack/judge

judge:
	for judge in $(JUDGES); do (cd $$judge && $(GO) vet ./... && $(GO) test -count=1 -timeout 10m ./...) || exit 1; done

race:
	CGO_ENABLED=1 $(GO) test -race -short -timeout 20m ./...

# gofmt, vet and staticcheck with its default checks; nothing is excluded.
lint:
	@unformatted=$$(gofmt -l $$($(GO) list -f '{{.Dir}}' ./...)); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	GOFLAGS=-buildvcs=false $(GO) run $(STATICCHECK) ./...

# What is generated, is made anew; then nothing may differ from before. The stripped program has a bound: 45 MiB.
MOST = 47185920
GENERATED = configs/job.schema.json configs/adapter.schema.json configs/openapi.json docs/descriptions.md

generate:
	$(GO) test -count=1 -run Schema . -update
	$(GO) test -count=1 -run 'Schema$$' ./adapters/rest/description -update
	$(GO) test -count=1 -run OpenAPI ./node/api -update

verify: build
	@size=$$(stat -c %s bin/pcm); [ $$size -le $(MOST) ] || { echo "bin/pcm has $$size bytes, over the bound of $(MOST): see DECISIONS 35"; exit 1; }
	$(GO) mod tidy -diff
	@before=$$(mktemp -d) && trap 'rm -rf "$$before"' EXIT && cp $(GENERATED) "$$before" && \
	$(MAKE) --no-print-directory generate && \
	for f in $(GENERATED); do \
		diff -u "$$before/$$(basename $$f)" "$$f" || { echo "$$f was out of date: commit what 'make generate' has written"; exit 1; }; \
	done
	$(GO) test -count=1 -run 'Docs|Example|Arrows|Pure' . ./cmd/pcm
	$(GO) test -count=1 -run MatrixIsCurrent ./adapters/adaptertest

# Prints each figure beside its target, those of cells beside etcd, which it fetches; takes about twenty minutes, and
# ten more as root, where back ends are installed; then what an attempt takes that waits at one.
bench: build
	$(GO) run ./cmd/bench -pcm bin/pcm
	$(GO) test -run '^$$' -bench WaitingAttempts -benchtime 1x ./adapters/supervisor

# Cells under faults of every kind, then every promise is checked. The short form is in 'make test'. As root, for
# disks that fail (by FUSE). make chaos FOR=1h SEED=7 replays a schedule.
FOR = 5m
SEED = 0

chaos: build
	$(GO) run ./cmd/chaos -pcm bin/pcm -for $(FOR) -seed $(SEED)

# Bugs are planted, one after the other; the harness must catch each with nine of ten seeds, by a promise that it breaks.
# Twenty minutes; SEEDS=1 for a look. 'make test' tries three.
SEEDS = 10

chaos-teeth:
	$(GO) run ./cmd/chaos -teeth -seeds $(SEEDS)

# Three peers of three owners trade, run, lose and audit jobs; under a minute.
demo: build
	$(GO) run ./cmd/demo -pcm bin/pcm

# Sites with Kubernetes, Slurm, Docker and processes share one job; as root. What it
# needs is said if it is missing; .ci/backends installs it.
demo-backends: build
	$(GO) run ./cmd/demo -pcm bin/pcm -backends

# A site joins the mesh with an account at a cloud and a description of that cloud's
# API, and no code; under a minute.
demo-describe: build
	$(GO) run ./cmd/demo -pcm bin/pcm -describe

clean:
	rm -rf bin
