#!/bin/sh
# What the image starts: options and commands of jupyter-desktop, or one of the programs named here.
set -eu
# A container has a network of its own; but Apptainer's and Singularity's is the host's.
[ -n "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ] ||
  export JUPYTER_DESKTOP_HOST="${JUPYTER_DESKTOP_HOST:-0.0.0.0}"
# dbus-daemon serves no user without a name; the root may be read-only, so that this file is in /tmp.
id -un >/dev/null 2>&1 ||
  (umask 077 && echo "user:x:$(id -u):$(id -g)::${HOME:-/home/desktop}:/bin/bash" >/tmp/.passwd)
case ${1:-} in
jupyterhub-singleuser | jupyter-desktop | sh | bash | /*) exec "$@" ;;
esac
# A Hub's spawner that names no command: in a container of its own these variables come from the spawner alone.
case ${1:-} in
"" | -*)
  [ -z "${JUPYTERHUB_API_TOKEN:-}" ] || [ -z "${JUPYTERHUB_SERVICE_PREFIX:-}" ] || exec jupyterhub-singleuser "$@"
  ;;
esac
exec jupyter-desktop "$@"
