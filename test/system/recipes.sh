#!/bin/sh
# Installs what reads and runs the recipes of docs/ into .cache/recipes, from PyPI and npm. Quick when all is there.
set -eu
cd "$(dirname "$0")/../.."

packages="python3-venv systemd"
command -v node >/dev/null || packages="$packages nodejs" # runs JupyterHub's proxy
missing=
for package in $packages; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update
  # shellcheck disable=SC2086 # a list of words
  apt-get install -y --no-install-recommends $missing
fi

python="kubernetes-validate==1.37.0 jupyterhub==6.1.1 jupyterhub-kubespawner==7.1.0 batchspawner==1.3.0
jupyter-repo2docker==2026.4.0"
node="configurable-http-proxy@5.1.0" # the last one that runs with the Node 18 of Debian 12
cache=.cache/recipes
# An environment knows its own absolute path: one that was moved here with its checkout is made anew.
wanted="$PWD $(/usr/bin/python3 --version) $python $node"
[ "$(cat $cache/installed 2>/dev/null)" != "$wanted" ] || exit 0
rm -rf $cache
mkdir -p $cache
# Debian's own Python by its path: the first on PATH may lack venv.
/usr/bin/python3 -m venv $cache
# shellcheck disable=SC2086 # a list of words
$cache/bin/pip install --quiet --disable-pip-version-check $python
mkdir $cache/node
echo '{"private":true}' >$cache/node/package.json
bun add --cwd $cache/node --exact --silent $node
echo "$wanted" >$cache/installed
