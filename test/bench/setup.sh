#!/bin/sh
# Installs what `bun run bench` compares with: Debian's and PyPI's own packages, nothing built here.
# Safe to run again; does nothing when all is there.
set -eu
cd "$(dirname "$0")/../.."

# The desktop that both pages show, the browser that looks at it, and two of the peers.
packages="websockify lighttpd tigervnc-standalone-server xfce4 dbus-x11 chromium python3-venv"
missing=
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
    missing="$missing $package"
done
if [ -n "$missing" ]; then
  apt-get update -qq
  # shellcheck disable=SC2086 # a list of words on purpose
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
fi

# The versions are pinned so that two runs of the benchmark measure the same peer.
wanted="jupyter_server==2.21.1 jupyter-server-proxy==4.6.0 jupyter-remote-desktop-proxy==3.0.1
jupyterhub==6.1.1"
venv=.cache/bench-venv
if [ "$(cat $venv/installed 2>/dev/null)" != "$wanted" ]; then
  rm -rf $venv
  mkdir -p .cache
  # Debian's own Python by its path: the first on PATH may lack venv.
  /usr/bin/python3 -m venv $venv
  # shellcheck disable=SC2086 # a list of words on purpose
  $venv/bin/pip install --quiet $wanted
  echo "$wanted" >$venv/installed
fi

# The Hub and its proxy are the tests' own.
test/jupyter.sh
