#!/usr/bin/env bash
# Builds the Dockerfile with buildah, runs the image as Docker would (its PID 1, no new privileges), and looks at the
# desktop: as the image's user; as a uid that nobody knows on a read-only root; its slim stage; and, with the word
# "qgis", the image that docs/recipes/qgis builds on that.
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
  ! b inspect --type image "$1" >/dev/null 2>&1 || return 0 # of a run with KEEP=1
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

context=$at/context log=$roots/logs/image-build.log
checkout_to "$context"
# Short names mean Docker's own registry, as in Docker; nothing is pulled.
printf 'unqualified-search-registries = ["docker.io"]\n' >"$at/registries.conf"
export CONTAINERS_REGISTRIES_CONF=$at/registries.conf REGISTRIES_CONFIG_PATH=$at/registries.conf
build() { # build tag context [option…]
  local tag=$1 from=$2 began=$EPOCHREALTIME
  shift 2
  nice buildah --root "$storage" --runroot "$at/runroot" --storage-driver vfs bud --layers --isolation chroot \
    --network host --format docker --pull-never --tag "$tag" "$@" "$from" >>"$log" 2>&1 || {
    tail -n 30 "$log"
    die "the Dockerfile does not build: $log"
  }
  say "built $tag in $(since "$began") s"
}
: >"$log"
build jupyter-desktop:slim "$context" --target slim
build jupyter-desktop "$context"

# The image's configuration: one word a line.
config() { bun -e "const { config } = JSON.parse(await Bun.file('$at/image.json').text()).Docker; for (const word of $1) console.log(word)"; }

# What is pulled: each layer as a registry has it.
layers() { # layers image
  b push --quiet --format v2s2 "localhost/$1" "dir:$at/layers" >/dev/null 2>&1 || die "no layers"
  bun -e "
    const { layers } = JSON.parse(await Bun.file('$at/layers/manifest.json').text());
    const mb = (bytes) => (bytes / 1e6).toFixed(1);
    const sizes = layers.map(({ size }) => size);
    console.log('$1:', sizes.length, 'layers, compressed', mb(sizes.reduce((a, b) => a + b)), 'MB:', sizes.map(mb).join(' '));"
  rm -rf "$at/layers"
}

init_of() { pgrep -P "$1"; }
inside() { nsenter --target "$(init_of "$outer")" --pid --mount chroot --userspec="$id" --groups="" "$root" env -i -C / "${environment[@]}" "$@"; }
zombies() { grep -lsE '^State:.Z' "/proc/$(init_of "$outer")/root/proc"/[0-9]*/status | wc -l; }
no_zombies() { [ "$(zombies)" -eq 0 ]; }

# The desktop's own variables, as its session has them.
session_environment() { # session_environment process
  local entry
  for entry in /proc/[0-9]*; do
    [ "$(readlink "$entry/root")" = "$root" ] || continue
    tr '\0' '\n' <"$entry/environ" 2>/dev/null | grep -E '^(DISPLAY|XAUTHORITY|DBUS_SESSION_BUS_ADDRESS)=' >"$at/session" || continue
    grep -q DBUS_ "$at/session" && break
  done
  mapfile -t session <"$at/session"
}
firefox_pages() { processes_in "$root" | grep -e '-contentproc -isForBrowser'; }
firefox_is_sandboxed() {
  local pid
  pid=$(firefox_pages | head -n 1 | cut -d ' ' -f 1)
  [ -n "$pid" ] && grep -q '^Seccomp:.2' "/proc/$pid/status"
}
look_at_firefox() {
  session_environment
  check "the session has a display and a bus" [ "${#session[@]}" -eq 3 ]
  # A file: Firefox takes no data: address from a command line.
  inside sh -c 'echo "<title>Firefox</title><body style=background:#ff8800><h1>Firefox in the container</h1>" >/tmp/page.html'
  (inside "${session[@]}" firefox-esr --new-window file:///tmp/page.html >"$roots/logs/$shot-firefox.log" 2>&1) &
  check "firefox-esr's page processes run under its seccomp sandbox" within 60 firefox_is_sandboxed
  firefox_pages | head -n 2 | while read -r pid rest; do
    say "      $pid $(grep -hE '^(Seccomp|NoNewPrivs)' "/proc/$pid/status" | tr '\t\n' '  ')${rest:0:60}"
  done
  check "and its page is painted" bun "$project/test/system/shot.ts" \
    "$local_url" "$roots/shots/$shot-firefox.png" ff8800
}

# A run of an image: its own PID namespace, its PID 1, no new privileges; on a read-only root only what is named is
# writable: /tmp, /run, /var/tmp, /dev/shm and the home.
run_image() { # run_image name image uid:gid|"" read-only|writable [word…]
  local shot=$1 image=$2 log=$roots/logs/image-$1.log made began status
  id=$3
  local how=$4
  shift 4
  say "--- $shot: $image as ${id:-its user}, $how"
  made=$(b from --pull-never "localhost/$image")
  root=$(b mount "$made")
  b inspect --type image "localhost/$image" >"$at/image.json"
  mapfile -t environment < <(config 'config.Env')
  mapfile -t command < <(config '[...config.Entrypoint, ...(config.Cmd ?? [])]')
  mapfile -t health < <(config 'config.Healthcheck.Test.slice(1)')
  [ -n "$id" ] || id=$(config '[config.User]'):1000
  directory=$(config '[config.WorkingDir]')
  say "      $(megabytes "$root") MB; user $id, in $directory: ${command[*]} $*"
  mount_into "$root"
  umount "$root/proc" # it gets the one of its own PID namespace
  if [ "$how" = read-only ]; then
    mount -o remount,bind,ro "$root"
    for place in tmp run var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$root/$place"; done
    mount -t tmpfs -o "mode=770,uid=0,gid=${id#*:}" tmpfs "$root/home/desktop"
  fi
  began=$EPOCHREALTIME
  setpriv --no-new-privs unshare --pid --mount --fork --kill-child --mount-proc="$root/proc" \
    chroot --userspec="$id" --groups="" "$root" env -i -C "$directory" "${environment[@]}" JUPYTER_DESKTOP_PORT=0 \
    "${extra[@]}" "${command[@]}" "$@" >"$log" 2>&1 </dev/null &
  outer=$!
  if within 30 has_url "$log"; then
    say "      its address $(since "$began") s after its start"
    sed 's#//0\.0\.0\.0:#//127.0.0.1:#' "$log" >"$at/url" # the log itself is still written to
    local_url=$(url_in "$at/url")
    look
  else
    say "BAD   no desktop:"
    cat "$log"
    bad=$((bad + 1))
  fi
  # As docker stop does: SIGTERM to PID 1.
  began=$EPOCHREALTIME
  kill -TERM "$(init_of "$outer")"
  check_nothing_left "$root" "$outer"
  say "      stopped within $(since "$began") s"
  wait "$outer"
  status=$?
  check "exit code 0 ($status)" [ "$status" -eq 0 ]
  unmount_from "$root"
  root=
  b rm "$made" >/dev/null
}
extra=()

see_desktop() {
  check "healthz answers" curl -sSf --max-time 5 -o /dev/null "${local_url%%/\?*}/healthz"
  check_desktop "$at/url" "image-$shot" "$began"
  check "its health check passes" inside "${health[@]}"
  inside sh -c '(sleep 0.2 &) ; (sh -c "sleep 0.1" &)'
  check "no zombie, also of processes that were left alone" within 5 no_zombies
}
see_desktop_and_firefox() {
  see_desktop
  look_at_firefox
  check "no zombie after that" within 5 no_zombies
  say "      processes:"
  processes_in "$root" | cut -c 1-110
}
# Without a desktop the page says so, and what to type.
see_server() {
  check "healthz answers" curl -sSf --max-time 5 -o /dev/null "${local_url%%/\?*}/healthz"
  check "its health check passes" inside "${health[@]}"
  check "the log says that there is no desktop" within 10 grep -q no-desktop "$log"
}

layers jupyter-desktop:slim
layers jupyter-desktop
look() { see_desktop_and_firefox; }
run_image user jupyter-desktop "" writable
run_image any-uid jupyter-desktop 12345:0 read-only
look() { see_server; }
run_image slim jupyter-desktop:slim "" writable
if [ "${1:-}" = qgis ]; then
  build desktop-qgis "$context/docs/recipes/qgis"
  look() { see_desktop; }
  run_image qgis desktop-qgis "" writable
fi
say "image: $([ "$bad" -eq 0 ] && echo good || echo "$bad BAD")"
[ "$bad" -eq 0 ]
