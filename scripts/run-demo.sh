#!/usr/bin/env bash
# Runs the demo: a real MCP server on 127.0.0.1:3000 and the proxy in front of it on 127.0.0.1:8080, until Ctrl-C.
#
#     scripts/run-demo.sh        make run
#     scripts/run-demo.sh tls    make run-tls: the proxy listens on 127.0.0.1:8443 too, with a certificate made now
#
# make builds what this starts. When either ends, the other is ended too, and the exit code is that of the
# one that ended first (1 if it called its unexpected end a success), or 128 plus the signal's number.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly SERVER=${CARGO_TARGET_DIR:-target}/release/examples/demo_server
readonly PROXY=${CARGO_TARGET_DIR:-target}/release/pingora-mcp
readonly SELF_SIGNED=${CARGO_TARGET_DIR:-target}/release/examples/self_signed
readonly TLS=${CARGO_TARGET_DIR:-target}/demo
readonly SERVER_PORT=3000 PROXY_PORT=8080 TLS_PORT=8443
pids=()

main() {
  local configuration=conf/minimal.yaml url=http://127.0.0.1:$PROXY_PORT/mcp trust=
  must_be_built "$SERVER"
  must_be_built "$PROXY"
  must_be_free "$SERVER_PORT" "the demo server"
  must_be_free "$PROXY_PORT" "the proxy"
  if [ "${1-}" = tls ]; then
    must_be_free "$TLS_PORT" "the proxy"
    make_tls
    configuration=$TLS/demo.yaml url=https://localhost:$TLS_PORT/mcp trust=" --cacert $TLS/demo.pem"
  fi
  trap end_all EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM

  start "$SERVER" "127.0.0.1:$SERVER_PORT"
  until_answers "$SERVER_PORT" "the demo server"
  start "$PROXY" -c "$configuration"
  until_answers "$PROXY_PORT" "the proxy"

  cat <<EOF

The proxy listens on $url, in front of the MCP server on http://127.0.0.1:$SERVER_PORT/mcp.
Open a session; the Mcp-Session-Id in the answer is the proxy's own:

  curl -i$trust $url -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' -d '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"curl","version":"1"}}}'

Ctrl-C ends both.
EOF
  while all_run; do pause; done
  exit_as_the_ended
}

# A certificate and a configuration with one more listener, which has it.
make_tls() {
  must_be_built "$SELF_SIGNED"
  mkdir -p "$TLS"
  "$SELF_SIGNED" "$TLS/demo.pem" "$TLS/demo.key"
  local listener="    - address: 127.0.0.1:$TLS_PORT
      tls:
        certificates:
          - certificate: $TLS/demo.pem
            key: $TLS/demo.key"
  while IFS= read -r line; do
    printf '%s\n' "$line"
    [[ $line != *address:* ]] || printf '%s\n' "$listener"
  done <conf/minimal.yaml >"$TLS/demo.yaml"
}

must_be_built() {
  [ -x "$1" ] || { echo "run-demo: $1 is not built: use make run" >&2; exit 1; }
}

must_be_free() {
  if answer_of "$1" >/dev/null || [ $? -eq 2 ]; then
    echo "run-demo: port $1 on 127.0.0.1, which $2 needs, is in use: end what listens there and try again" >&2
    exit 1
  fi
}

start() {
  "$@" &
  pids+=($!)
}

until_answers() {
  local deadline=$((SECONDS + 20))
  until answer_of "$1" >/dev/null; do
    all_run || exit_as_the_ended
    [ "$SECONDS" -lt "$deadline" ] || { echo "run-demo: $2 did not answer on port $1 within 20 s" >&2; exit 1; }
    pause
  done
}

# The first line of the answer to an HTTP request; 1: nothing listens there, 2: it listens and does not answer.
answer_of() (
  exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
  printf 'OPTIONS /mcp HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n' "$1" >&3 || exit 2
  read -r -t 2 line <&3 && [[ $line == HTTP/1.* ]] && echo "$line" || exit 2
) 2>/dev/null

all_run() {
  local pid
  for pid in "${pids[@]}"; do kill -0 "$pid" 2>/dev/null || return 1; done
}

exit_as_the_ended() {
  local pid code=0
  for pid in "${pids[@]}"; do
    if ! kill -0 "$pid" 2>/dev/null; then
      wait "$pid" || code=$?
      echo "run-demo: process $pid ended with code $code" >&2
      exit $((code == 0 ? 1 : code))
    fi
  done
}

# INT first, on which a server ends at once and not only when its connections have.
end_all() {
  trap '' INT TERM
  local signal pid
  for signal in INT TERM KILL; do
    for pid in ${pids[@]+"${pids[@]}"}; do kill -s "$signal" "$pid" 2>/dev/null || true; done
    local deadline=$((SECONDS + 2))
    while any_runs; do
      [ "$SECONDS" -lt "$deadline" ] || continue 2
      pause
    done
    return 0
  done
}

any_runs() {
  local pid
  for pid in ${pids[@]+"${pids[@]}"}; do kill -0 "$pid" 2>/dev/null && return 0; done
  return 1
}

# Between two looks at something; in the background, so that a signal is heard at once.
pause() {
  sleep 0.1 &
  wait $! || true
}

main "$@"
