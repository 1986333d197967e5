#!/usr/bin/env bash
# Builds the Dockerfile with buildah, runs the image as Docker would (its user, its PID 1), and looks at the desktop.
# The bases it names are made here: Debian by debootstrap, thinned as Debian's slim images are, and Bun's from npm.
set -u
. "$(dirname "$0")/roots.sh"
command -v buildah >/dev/null || die "buildah is missing. Type: apt-get install --no-install-recommends buildah"
isolate "$@"
storage=$roots/storage
root=
at=$(mktemp -d)
b() { buildah --root "$storage" --runroot "$at/runroot" --storage-driver vfs "$@"; }

finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "$root" ]; then
    processes_in "$root" | while read -r pid _; do kill -KILL "$pid" 2>/dev/null; done
    sleep 0.3
    unmount_from "$root"
  fi
  b rm --all >/dev/null
  b umount --all >/dev/null 2>&1
  # What is made by the Dockerfile is made anew each time; KEEP=1 keeps it.
  [ -n "${KEEP:-}" ] || rm -rf --one-file-system "$storage"
  rm -rf --one-file-system "$at"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

suite=$(sed -nE 's/^FROM debian:([a-z]+)-slim.*/\1/p' "$project/Dockerfile")
debian=docker.io/library/debian:$suite-slim
mkdir -p "$roots/logs" "$roots/shots"
base_tarball plain "$suite"

make_base() { # make_base name bun?
  local made mounted
  made=$(b from scratch)
  mounted=$(b mount "$made")
  tar -C "$mounted" -xf "$roots/$suite-plain.tar.zst"
  rm -rf "$mounted"/usr/share/{doc,man,info,locale}/* "$mounted"/var/lib/apt/lists/* "$mounted"/var/cache/apt/*.bin
  printf 'path-exclude /usr/share/%s/*\n' doc man info locale >"$mounted/etc/dpkg/dpkg.cfg.d/docker"
  echo 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb /var/cache/apt/*.bin || true"; };' \
    >"$mounted/etc/apt/apt.conf.d/docker-clean"
  [ -z "${2:-}" ] || install -m 755 "$(bun_binary)" "$mounted/usr/local/bin/bun"
  if [ -n "${2:-}" ] && [ -r "$machine_ca" ]; then # for the build stage only: nothing of it is in the image
    cp -L "$machine_ca" "$mounted/usr/local/share/machine-ca.pem"
    b config --env SSL_CERT_FILE=/usr/local/share/machine-ca.pem \
      --env NODE_EXTRA_CA_CERTS=/usr/local/share/machine-ca.pem "$made"
  fi
  b config --cmd bash "$made"
  say "$1: $(megabytes "$mounted") MB"
  b commit --quiet --format docker --rm "$made" "$1" >/dev/null || die "no base image"
}
make_base "$debian"
make_base "docker.io/oven/bun:$bun_version-slim" bun

say "buildah build"
context=$at/context began=$EPOCHREALTIME log=$roots/logs/image-build.log
checkout_to "$context"
# Short names mean Docker's own registry, as in Docker; nothing is pulled.
printf 'unqualified-search-registries = ["docker.io"]\n' >"$at/registries.conf"
CONTAINERS_REGISTRIES_CONF=$at/registries.conf REGISTRIES_CONFIG_PATH=$at/registries.conf \
  b bud --isolation chroot --network host --format docker --pull-never --tag jupyter-desktop "$context" >"$log" 2>&1 || {
  tail -n 30 "$log"
  die "the Dockerfile does not build: $log"
}
made=$(b from --pull-never localhost/jupyter-desktop)
root=$(b mount "$made")
say "built in $(since "$began") s: $(megabytes "$root") MB"
du -xm -d 3 "$root" | sort -rn | head -n 12

# The image's configuration: one word a line.
b inspect --type image localhost/jupyter-desktop >"$at/image.json"
config() { bun -e "const { config } = JSON.parse(await Bun.file('$at/image.json').text()).Docker; for (const word of $1) console.log(word)"; }
mapfile -t environment < <(config 'config.Env')
mapfile -t command < <(config '[...config.Entrypoint, ...config.Cmd]')
mapfile -t health < <(config 'config.Healthcheck.Test.slice(1)')
user=$(config '[config.User]') directory=$(config '[config.WorkingDir]')
say "user $user, in $directory: ${command[*]}"
id=$(chroot "$root" id -u "$user"):$(chroot "$root" id -g "$user")
check "its user is 1000" [ "${id%:*}" = 1000 ]
home=$(chroot "$root" getent passwd "$user" | cut -d : -f 6)

mount_into "$root"
umount "$root/proc" # it gets the one of its own PID namespace
log=$roots/logs/image-run.log began=$EPOCHREALTIME
port=()
[ -z "${JUPYTER_DESKTOP_PORT:-}" ] || port=("JUPYTER_DESKTOP_PORT=$JUPYTER_DESKTOP_PORT")
unshare --pid --mount --fork --kill-child --mount-proc="$root/proc" \
  chroot --userspec="$id" --groups="" "$root" env -i -C "$directory" "${environment[@]}" "${port[@]}" HOME="$home" \
  "${command[@]}" >"$log" 2>&1 </dev/null &
outer=$!
if within 30 has_url "$log"; then
  url=$(url_in "$log")
  say "      $url"
  local_url=${url/0.0.0.0/127.0.0.1}
  base=${local_url%%/\?*}
  check "healthz answers" curl -sSf --max-time 5 -o /dev/null "$base/healthz"
  sed -i 's#//0\.0\.0\.0:#//127.0.0.1:#' "$log"
  check_desktop "$log" image "$began"
  check "its health check passes" nsenter --target "$(pgrep -P "$outer")" --pid --mount chroot --userspec="$id" "$root" env -i -C / "${environment[@]}" "${health[@]}"
  say "      processes:"
  processes_in "$root" | cut -c 1-110
else
  say "BAD   no desktop:"
  cat "$log"
  bad=$((bad + 1))
fi
# As docker stop does: SIGTERM to PID 1.
init=$(pgrep -P "$outer")
kill -TERM "$init"
check_nothing_left "$root" "$outer"
wait "$outer"
say "      exit code $?"
cat "$log"
say "image: $([ "$bad" -eq 0 ] && echo good || echo "$bad BAD")"
[ "$bad" -eq 0 ]
