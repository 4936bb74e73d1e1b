#!/bin/sh
# Debian packages that four parts use: Chromium (the site in a real browser), Rocq (the
# machine-checked proofs), a C compiler (the attention kernels) and, on x86-64, a compiler and an
# emulator for ARM (the tests of its kernels; 54 MB to fetch, 270 MB on disk). Without the C compiler
# attention on codes is computed by torch, without the others tests are skipped; each says so.
# Idempotent: installs what is missing where it may (as root, or through sudo without a password).
set -eu

missing=""
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then browser=$name; fi
done
[ -n "${browser:-}" ] || missing="chromium"
compiler=""
for name in cc gcc clang; do
    if command -v "$name" >/dev/null 2>&1; then compiler=$name; fi
done
[ -n "$compiler" ] || missing="$missing gcc libc6-dev"
for package in make coq libcoq-mathcomp-analysis libcoq-mathcomp-real-closed \
    libcoq-mathcomp-algebra-tactics libcoq-coquelicot; do
    dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
done
arm=""
if [ "$(uname -m)" = x86_64 ]; then
    command -v aarch64-linux-gnu-gcc >/dev/null 2>&1 ||
        arm="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
    emulator=""
    for name in qemu-aarch64-static qemu-aarch64; do
        if command -v "$name" >/dev/null 2>&1; then emulator=$name; fi
    done
    [ -n "$emulator" ] || arm="$arm qemu-user"
fi
[ -n "$missing$arm" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "system-deps: skipped, there is no apt-get here; wanted: $missing $arm"
    exit 0
fi
run=""
if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
        echo "system-deps: skipped, not root and no sudo; to install: apt-get install $missing $arm"
        exit 0
    fi
    run="sudo -n"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive

# The emulator apart from the rest: where a system has no such package, the others still come.
try_install() {
    [ -n "$1" ] || return 0
    echo "system-deps: installing $1"
    # shellcheck disable=SC2086 # the lists are words
    if ! $run apt-get install -y -qq --no-install-recommends $1 >"$log" 2>&1; then
        tail -n 5 "$log"
        echo "system-deps: could not install; the tests that need them will be skipped"
    fi
}
$run apt-get update -qq >"$log" 2>&1 || tail -n 5 "$log"
try_install "$missing"
try_install "$arm"
