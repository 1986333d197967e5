# shellcheck shell=bash
# Debian roots on which nothing was installed by hand. Sourced by clean-root.sh and image.sh, which run as root in
# mount and PID namespaces of their own: what a run mounts or leaves running is gone when it ends, however it ends.

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# The checkouts in here have .ts files: name another place to keep them from tools that walk the whole project.
roots=${CLEAN_ROOTS:-$project/.cache/roots}
bun_version=$(sed -nE 's/^FROM oven\/bun:([0-9.]+)-slim.*/\1/p' "$project/Dockerfile")
export TZ=UTC

say() { printf '%s  %s\n' "$(date +%T)" "$*"; }
die() {
  say "FAILED: $*" >&2
  exit 1
}
bad=0
check() { # check "what" command…
  local what=$1
  shift
  if "$@"; then say "ok    $what"; else
    say "BAD   $what"
    bad=$((bad + 1))
  fi
}
megabytes() { du -scm --one-file-system "$@" 2>/dev/null | tail -n 1 | cut -f 1; }

# Runs the calling script again in namespaces of its own; as root only.
isolate() {
  [ "$(id -u)" -eq 0 ] || die "only root can make roots"
  command -v debootstrap >/dev/null || die "debootstrap is missing. Type: apt-get install debootstrap"
  [ -n "${CLEAN_ROOT_ISOLATED:-}" ] ||
    CLEAN_ROOT_ISOLATED=1 exec unshare --mount --pid --fork --kill-child --mount-proc bash "$0" "$@"
  mkdir -p "$roots"
}

# If the machine has a CA of its own, what runs in the root must know it: env_in_root has its variables.
env_in_root=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
machine_ca=${SSL_CERT_FILE:-${NODE_EXTRA_CA_CERTS:-}}
if [ -r "$machine_ca" ]; then
  for name in SSL_CERT_FILE NODE_EXTRA_CA_CERTS npm_config_cafile PIP_CERT; do
    env_in_root+=("$name=/usr/local/share/machine-ca.pem")
  done
fi

# Mounts what a running system has into a root.
mount_into() {
  local root=$1
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  [ ! -r "$machine_ca" ] || cp -L "$machine_ca" "$root/usr/local/share/machine-ca.pem"
  mount --bind "$root" "$root" # the root of a machine is a mount point: unshare needs that
  mount --bind /proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev" # with /dev/pts and /dev/shm
}

# Unmounts all of it again.
unmount_from() { ! mountpoint -q "$1" || umount -R "$1" || umount -R -l "$1"; }

# Removes a root, never what is mounted in it.
remove_root() {
  local root=$1
  [ -d "$root" ] || return 0
  unmount_from "$root"
  ! grep -qE " $root(/| )" /proc/self/mounts || die "something is still mounted in $root"
  rm -rf --one-file-system "$root"
}

# The bun binary, from the npm registry.
bun_binary() {
  local file=$roots/bun-$bun_version arch=x64
  [ "$(uname -m)" = x86_64 ] || arch=aarch64
  if [ ! -x "$file" ]; then
    local dir
    dir=$(mktemp -d "$roots/fetch.XXXX")
    echo '{}' >"$dir/package.json"
    (cd "$dir" && bun add --silent --exact "@oven/bun-linux-$arch@$bun_version") >&2
    install -m 755 "$dir/node_modules/@oven/bun-linux-$arch/bin/bun" "$file"
    rm -rf --one-file-system "$dir"
  fi
  echo "$file"
}

# Makes the tarball of a base once: of a suite alone (plain), with Debian's nodejs and npm (node), with Node and npm as
# the registry has them, which runs no install script that is not allowed (npm12), or with the bun binary (bun).
base_tarball() {
  local kind=$1 suite=$2 file=$roots/$2-$1.tar.zst root=$roots/making-$2-$1
  [ ! -f "$file" ] || return 0
  remove_root "$root"
  if [ "$kind" = plain ]; then
    say "debootstrap $suite"
    nice debootstrap --variant=minbase "$suite" "$root" >"$root.log" 2>&1 || die "debootstrap: see $root.log"
  else
    base_tarball plain "$suite"
    mkdir "$root"
    tar -C "$root" -xf "$roots/$suite-plain.tar.zst"
  fi
  case $kind in
  bun) install -m 755 "$(bun_binary)" "$root/usr/local/bin/bun" ;;
  npm12)
    mkdir "$root/opt/node"
    echo '{}' >"$root/opt/node/package.json"
    (cd "$root/opt/node" && bun add --silent --exact "node-linux-$([ "$(uname -m)" = x86_64 ] && echo x64 || echo arm64)@22" npm@12)
    (cd "$root/usr/local/bin" && ln -s ../../../opt/node/node_modules/{node-linux-*/bin/node,npm/bin/npm-cli.js,npm/bin/npx-cli.js} . &&
      mv npm-cli.js npm && mv npx-cli.js npx)
    ;;
  node)
    say "nodejs and npm of $suite"
    mount_into "$root"
    chroot "$root" env -i "${env_in_root[@]}" DEBIAN_FRONTEND=noninteractive nice sh -ec \
      'apt-get update; apt-get install -y --no-install-recommends nodejs npm; apt-get clean; rm -rf /var/lib/apt/lists/*' \
      >"$root.log" 2>&1 || die "apt-get: see $root.log"
    unmount_from "$root"
    ;;
  esac
  rm -rf "$root"/var/cache/apt/archives/*.deb
  tar -C "$root" --one-file-system --numeric-owner -c . | nice zstd -q -3 -T1 -o "$file.part"
  mv "$file.part" "$file"
  say "$suite $kind: $(megabytes "$root") MB, packed $(megabytes "$file") MB"
  remove_root "$root"
}

# Copies the working tree as a fresh checkout would have it.
checkout_to() {
  mkdir -p "$1"
  (cd "$project" && git ls-files -z -co --exclude-standard | while IFS= read -r -d '' name; do
    [ ! -e "$name" ] || printf '%s\0' "$name"
  done | tar --null -T - -c) | tar -C "$1" -x --no-same-owner
}

# Polls a command until it succeeds, for so many seconds.
within() { # within seconds command…
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.2
  done
}

# The processes that live in a root, one a line.
processes_in() {
  local entry
  for entry in /proc/[0-9]*; do
    [ "$(readlink "$entry/root")" = "$1" ] || continue
    grep -q '^State:.Z' "$entry/status" 2>/dev/null ||
      printf '%s %s\n' "${entry#/proc/}" "$(tr '\0\n' '  ' 2>/dev/null <"$entry/cmdline" | cut -c 1-150)"
  done
}
none_in() { [ -z "$(processes_in "$1")" ]; }

ended() { ! kill -0 "$1" 2>/dev/null || grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }

# What a stopped desktop must not leave behind.
files_left_in() {
  find "$1/tmp" "$1/run" \( -type s -o -name '.X*-lock' -o -type f -path '*jupyter-desktop*' -o -type d -name 'tcp-*' \)
}
check_nothing_left() {
  local root=$1 outer=$2 began=$EPOCHREALTIME
  within 15 ended "$outer"
  say "      the command ended $(since "$began") s after the signal, with these still there: $(processes_in "$root" | wc -l)"
  if within 15 none_in "$root"; then
    say "ok    no process left, $(since "$began") s after the signal"
  else
    say "BAD   processes left after 15 s:"
    processes_in "$root"
    bad=$((bad + 1))
    processes_in "$root" | while read -r pid _; do kill -KILL "$pid" 2>/dev/null; done
    sleep 0.5
  fi
  if [ -n "$(files_left_in "$root")" ]; then
    say "BAD   files left:"
    files_left_in "$root"
    bad=$((bad + 1))
  else say "ok    no socket, lock or runtime directory left"; fi
}

since() { awk -v a="$1" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }'; }

url_in() { sed -nE 's/\r$//; s/^.*Desktop: (http[^ ]+).*$/\1/p' "$1" | tail -n 1; }
has_url() { [ -n "$(url_in "$1")" ]; }
status_of() { # status_of base-url cookie-jar
  curl -sS --max-time 5 -b "$2" "$1/desktop/api/status"
}
is_ready() { status_of "$@" | grep -q '"state":"ready"'; }

# It is a desktop when its page answers, its status says ready, and a browser paints it.
check_desktop() { # check_desktop log name began
  local log=$1 name=$2 began=$3 url base jar code
  url=$(url_in "$log")
  base=${url%%/\?*}
  jar=$(mktemp)
  code=$(curl -sSL --max-time 10 -c "$jar" -b "$jar" -o /dev/null -w '%{http_code}' "$url")
  check "the page answers 200 ($code)" [ "$code" = 200 ]
  check "the status says ready" within 30 is_ready "$base" "$jar"
  say "      ready $(since "$began") s after the command"
  rm -f "$jar"
  check "the page shows a painted desktop: $roots/shots/$name.png" \
    bun "$project/test/system/shot.ts" "$url" "$roots/shots/$name.png"
}
