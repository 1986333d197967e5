#!/bin/sh
# Installs what the tests need beside Bun: Debian's packages, then the project's own. Quick when all is there.
set -eu
cd "$(dirname "$0")/.."

packages="tigervnc-standalone-server xfce4 xfce4-terminal dbus-x11 x11-xserver-utils adwaita-icon-theme librsvg2-common
fonts-dejavu-core libgl1-mesa-dri chromium firefox-esr xclip xdotool x11-utils xterm iproute2 procps x11vnc xvfb
nginx-light caddy openssl libnss-wrapper curl"
command -v npm >/dev/null || packages="$packages nodejs npm"

missing=
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null; then
    echo "The tests run on Debian or Ubuntu. Elsewhere, install what corresponds to:$missing" >&2
    exit 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    echo "The tests need packages that only root can install. Type: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update
  # shellcheck disable=SC2086 # a list of words
  apt-get install -y --no-install-recommends $missing
fi

bun install --frozen-lockfile
bun run build
test/jupyter.sh
