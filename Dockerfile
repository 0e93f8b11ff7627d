# The proxy alone, not as root, on a file system that need not be written to:
#
#   docker build -t pingora-mcp .
#   docker run --read-only --cap-drop ALL --stop-timeout 30 -p 8080:8080 -v ./conf:/etc/pingora-mcp:ro pingora-mcp
#
# In the configuration, conf/edge.yaml, listen on 0.0.0.0:8080: within a container, 127.0.0.1 is reached by nobody
# else. Mount the folder, not the file: what edits a file mostly puts a new one in its place, and a container that
# was given the file keeps the old one, which SIGHUP then reads again.

FROM rust:1.95-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin pingora-mcp \
    && cp target/release/pingora-mcp /usr/local/bin/pingora-mcp

# The MCP server of deploy/compose.yaml: docker build --target demo -t pingora-mcp-demo .
FROM build AS build-demo
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/build/target \
    cargo build --release --locked --example demo_server \
    && cp target/release/examples/demo_server /usr/local/bin/demo_server

FROM debian:bookworm-slim AS demo
COPY --from=build-demo /usr/local/bin/demo_server /usr/local/bin/demo_server
USER 65532:65532
EXPOSE 3000
ENTRYPOINT ["/usr/local/bin/demo_server", "0.0.0.0:3000"]

FROM debian:bookworm-slim
COPY --from=build /usr/local/bin/pingora-mcp /usr/local/bin/pingora-mcp
# The authorities by which https backends without a 'ca' of their own are believed.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# No name for it is needed, so that no file of the image is written.
USER 65532:65532
EXPOSE 8080
# SIGTERM, Docker's own, finishes what is under way: --stop-timeout is longer than mcp.drain.deadline.
ENTRYPOINT ["/usr/local/bin/pingora-mcp"]
CMD ["-c", "/etc/pingora-mcp/edge.yaml"]
