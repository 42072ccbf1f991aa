# Cairn: `make image` builds the program and a bootable Debian image with it,
# `make test` runs everything.

GO      ?= go
OUT     ?= out
GOFLAGS_STATIC = -trimpath -tags 'netgo osusergo' -ldflags '-s -w -extldflags -static'
SOURCES := go.mod go.sum $(shell find cmd elements fsbuild oci reproducibility sandbox -type f -not -name '*_test.go' 2>/dev/null)
NAMES    = disk-image-create element-info dib-run-parts
ELEMENTS = debian-minimal vm cloud-init openssh-server growroot
LINT     = $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: all image test test-long race fuzz unit bench lint tools clean

all: bin/cairn $(NAMES:%=bin/%)

bin/cairn: $(SOURCES)
	@mkdir -p bin
	CGO_ENABLED=1 $(GO) build $(GOFLAGS_STATIC) -o $@.new ./cmd/cairn
	@mv -f $@.new $@

$(NAMES:%=bin/%): | bin/cairn
	ln -sf cairn $@

image: all
	@mkdir -p $(OUT)
	bin/cairn build -a amd64 -o $(OUT)/debian -t qcow2,raw $(ELEMENTS)

# What the tests need, from Debian's packages; only root can install.
tools:
	tests/install-tools

unit:
	$(GO) vet ./...
	$(GO) test ./cmd/... ./elements/... ./fsbuild/... ./oci/... ./reproducibility/... ./sandbox/... ./tests/arch/...

# Tests that take minutes: file systems grown to 1 PiB, directories of a million
# names.
test-long:
	CAIRN_TEST_LONG=1 $(GO) test -count=1 -timeout 60m ./fsbuild/...

# Everything in fsbuild with the race detector.
race:
	CAIRN_TEST_TREES=100 $(GO) test -race -count=1 -timeout 60m ./fsbuild/...

# Every fuzz target of fsbuild for FUZZTIME, then more generated trees. Left
# alone, Go spends the whole time on making the first interesting archives
# shorter.
FUZZTIME ?= 2m
TREES    ?= 10000
fuzz:
	@set -e; for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' fsbuild | xargs -n 1 dirname | sort -u); do \
		for target in $$(cat $$dir/*_test.go | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p'); do \
			echo "$$dir $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$dir; \
		done; \
	done
	CAIRN_TEST_TREES=$(TREES) $(GO) test -count=1 -timeout 60m -run '^TestGenerated$$' ./fsbuild/ext4

lint:
	$(LINT) run ./...

test: all tools
	tests/run

bench: all tools
	tests/bench/run

clean:
	rm -rf bin $(OUT)
