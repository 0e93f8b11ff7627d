# `make` lists what there is to do. Each target first makes the tools available that it needs (scripts/tools.sh).

export PATH := $(CURDIR)/target/tools/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run run-tls check test mutations conformance interop soak fuzz chart bench bench-check bench-load audit \
	tools-build tools-test tools-interop tools-fuzz tools-chart tools-bench tools-load

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do \
		printf '%-16s %s\n' "$$target" "$$what"; done

run: tools-build ## Build and start a demo MCP server with the proxy in front of it
	cargo build --release --locked --bins --example demo_server
	@scripts/run-demo.sh

run-tls: tools-build ## The same, with TLS and HTTP/2
	cargo build --release --locked --bins --example demo_server --example self_signed
	@scripts/run-demo.sh tls

# The load bench is linted by name, as cargo runs it by name alone. The docs cover the examples, and so are built with
# the same features of the dependencies as the lints and the tests.
check: tools-test ## The quick checks: format, dependencies, lints, docs
	cargo fmt --check
	cargo deny --locked check licenses bans sources
	cargo clippy --locked --all-targets --bench load -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --lib --examples

test: check ## The quick checks, then all tests
	cargo test --locked
	@$(MAKE) --no-print-directory conformance

conformance: tools-test ## The official conformance suite, directly and through the proxy (WRITE=1: keep its tables)
	cargo build --locked --bins --example demo_server
	node tests/conformance/run.mjs $(if $(WRITE),--write)

mutations: tools-build ## Break each rule of the proxy once, and see which test notices (a part of the tests)
	cargo test --locked --test mutations -- --nocapture

# Not in `make test`: it takes minutes, and what it finds anew is most often a change of an SDK's.
interop: tools-interop ## Each official SDK with each, directly and through the proxy (INTEROP=--write keeps the outcome)
	cargo build --locked --bins --example demo_server
	cargo test --locked --test interop -- $(INTEROP)

# Not in `make test`, where the same tests are smaller: it takes minutes, and 16,024 open files.
soak: export PINGORA_MCP := $(CURDIR)/target/release/pingora-mcp
soak: tools-build ## 5,000 streams beside 2,000 requests a second; 10,000 under way across SIGTERM and an upgrade
	cargo build --release --locked --bin pingora-mcp
	SOAK_STREAMS=5000 SOAK_RATE=2000 SOAK_SECONDS=60 cargo test --locked --test soak -- --nocapture
	IN_FLIGHT=10000 cargo test --locked --test drain no_request -- --test-threads 1

# cargo-fuzz wants a nightly compiler for the flags of its sanitizer; RUSTC_BOOTSTRAP has this one take them. New inputs
# stay below target/fuzz/corpus; CONTRIBUTING.md says how they get into fuzz/corpus. What the session cache frees later
# would be looked for as a leak after each input.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz: tools-fuzz ## Fuzz what reads headers, messages and the configuration (FUZZ_SECONDS=60 each, FUZZ_TARGETS=path)
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target && \
		cargo fuzz run --target-dir target/fuzz $$target target/fuzz/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -print_final_stats=1 -detect_leaks=0 || exit; \
	done

# Not in `make test`: it needs packages from PyPI that nothing else does.
chart: tools-chart ## Render the Helm chart, and check it and what else is in deploy/
	cargo build --locked --bins --example self_signed
	python-chart tests/chart/check.py

bench: tools-bench ## The micro-benchmarks: time, then instructions and allocations
	cargo bench --locked
	$(MAKE) bench-check

# Not in `make test`, as it builds all of it anew, optimised.
bench-check: tools-bench ## Instructions and allocations of a call, compared with benches/instructions.csv (WRITE=1: keep them)
	cargo bench --locked --bench instructions -- $(if $(WRITE),--write)

# Not in `make bench`: it takes a quarter of an hour. All are built as what is shipped is.
LOAD ?= all
ROUNDS ?= 5
bench-load: tools-load ## The load bench, beside other proxies (LOAD="session-post fan-out", ROUNDS=5, WRITE=1: keep it)
	cargo build --release --locked --example bare_proxy
	cargo bench --profile release --locked --bench load -- $(LOAD) --rounds $(ROUNDS) $(if $(WRITE),--write)

audit: tools-test ## Look the dependencies up in RustSec's list of vulnerabilities (fetched from GitHub)
	cargo deny --locked check advisories

tools-build tools-test tools-interop tools-fuzz tools-chart tools-bench tools-load: tools-%:
	@scripts/tools.sh $*
