#!/bin/sh
# Installs the real Jupyter and JupyterHub that the tests run against, into .cache/jupyter: `venv` from PyPI, `node` from
# npm (JupyterHub's proxy). Called by setup.sh. Quick when all is there.
set -eu
cd "$(dirname "$0")/.."

packages="python3-venv python3-tk"
command -v node >/dev/null || packages="$packages nodejs" # runs JupyterHub's proxy
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

# Pinned, so that a failing test is about this project and not about a release of last night.
python="jupyterlab==4.6.6 notebook==7.6.5 jupyter_server==2.21.1 jupyter-server-proxy==4.6.0 ipykernel==7.4.0
jupyterhub==6.1.1 jupyterhub-idle-culler==2.0.0"
node="configurable-http-proxy@5.1.0" # the last one that runs with the Node 18 of Debian 12
cache=.cache/jupyter
# An environment knows its own absolute path: one that was moved here with its checkout is made anew.
wanted="$PWD $(/usr/bin/python3 --version) $python $node"
[ "$(cat $cache/installed 2>/dev/null)" != "$wanted" ] || exit 0
rm -rf $cache
mkdir -p $cache/node
# Debian's own Python by its path: the first on PATH may lack venv, and its tkinter.
/usr/bin/python3 -m venv $cache/venv
# shellcheck disable=SC2086 # a list of words
$cache/venv/bin/pip install --quiet --disable-pip-version-check $python
echo '{"private":true}' >$cache/node/package.json
bun add --cwd $cache/node --exact --silent $node
echo "$wanted" >$cache/installed
