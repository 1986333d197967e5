#!/usr/bin/env bash
# Runs the executables where there is no Bun and no Node: x64 in a Debian root with nothing installed by hand, from
# `setup` to a painted desktop; arm64 with the libraries of an arm64 root, by qemu-user where this machine is another.
#   test/system/executable.sh bookworm|trixie
set -u
. "$(dirname "$0")/roots.sh"
case ${1:-} in bookworm | trixie) ;; *) die "usage: executable.sh bookworm|trixie" ;; esac
isolate "$@"
suite=$1
name=executable-$suite
root=$roots/run-$name
arm=$roots/run-$name-arm64

finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  processes_in "$root" | while read -r pid _; do kill -KILL "$pid" 2>/dev/null; done
  [ -z "${arm_pid:-}" ] || kill -KILL "$arm_pid" 2>/dev/null
  sleep 0.3
  remove_root "$root"
  remove_root "$arm"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

(cd "$project" && bun run build:exe) >/dev/null || die "bun run build:exe"
base_tarball plain "$suite"
remove_root "$root"
mkdir -p "$root" "$roots/logs" "$roots/shots"
tar -C "$root" -xf "$roots/$suite-plain.tar.zst"
mount_into "$root"
chroot "$root" useradd --create-home --shell /bin/bash someone
arch=x64 other=arm64
[ "$(uname -m)" = x86_64 ] || arch=arm64 other=x64
install -m 755 "$project/dist/jupyter-desktop-linux-$arch" "$root/usr/local/bin/jupyter-desktop"
ln -s jupyter-desktop "$root/usr/local/bin/jupyterhub-singleuser"
say "$name: $(stat -c %s "$root/usr/local/bin/jupyter-desktop") bytes"

run_as() { # run_as user word…
  local user=$1 home=/root
  [ "$user" = root ] || home=/home/$user
  shift
  exec chroot --userspec="$user:$user" --groups="" "$root" env -i "${env_in_root[@]}" TERM=xterm HOME="$home" \
    JUPYTER_DESKTOP_PORT=0 sh -c 'cd && exec "$@"' sh "$@"
}
nothing_of() { ! chroot "$root" sh -c "command -v $1" >/dev/null; }
check "there is no Bun" nothing_of bun
check "and no Node" nothing_of node
version=$(sed -nE 's/^  "version": "(.*)",/\1/p' "$project/package.json")
check "it says its version" [ "$(run_as someone jupyter-desktop --version)" = "$version" ]
# The page's own files would be beside server.ts: there is nothing but the executable.
printf 'JUPYTER_DESKTOP_PORT=nonsense\n' >"$root/home/someone/.env"
check "a .env where it is started is not heeded" [ "$(run_as someone jupyter-desktop --version)" = "$version" ]
began=$EPOCHREALTIME
(run_as root jupyter-desktop setup --yes) >"$roots/logs/$name-setup.log" 2>&1 </dev/null
check "setup installs what is missing ($(since "$began") s)" [ $? -eq 0 ]
log=$roots/logs/$name.log began=$EPOCHREALTIME
(run_as someone jupyter-desktop) >"$log" 2>&1 </dev/null &
pid=$!
if within 30 has_url "$log"; then
  say "      its address $(since "$began") s after its start"
  check_desktop "$log" "$name" "$began"
  say "      $(awk '/VmRSS/ { print $2 / 1000 " MB" }' "/proc/$pid/status") resident"
else
  say "BAD   no desktop:"
  cat "$log"
  bad=$((bad + 1))
fi
kill -TERM "$pid"
check_nothing_left "$root" "$pid"
wait "$pid"
check "exit code 0" [ $? -eq 0 ]

# The other processor's: its own libraries, and this machine's Xvnc if there is one.
if [ "$other" = arm64 ] && command -v qemu-aarch64-static >/dev/null; then
  mkdir -p "$arm"
  say "debootstrap $suite arm64, unpacked"
  nice debootstrap --arch=arm64 --foreign --variant=minbase "$suite" "$arm" >"$roots/logs/$name-arm64-root.log" 2>&1 ||
    die "debootstrap: see $roots/logs/$name-arm64-root.log"
  emulated=(qemu-aarch64-static -L "$arm" "$project/dist/jupyter-desktop-linux-arm64")
  check "the arm64 executable says its version" [ "$("${emulated[@]}" --version)" = "$version" ]
  log=$roots/logs/$name-arm64.log began=$EPOCHREALTIME
  JUPYTER_DESKTOP_PORT=0 "${emulated[@]}" >"$log" 2>&1 </dev/null &
  arm_pid=$!
  if within 60 has_url "$log"; then
    say "      its address $(since "$began") s after its start"
    check_desktop "$log" "$name-arm64" "$began"
  else
    say "BAD   no desktop:"
    cat "$log"
    bad=$((bad + 1))
  fi
  kill -TERM "$arm_pid"
  wait "$arm_pid"
  check "exit code 0" [ $? -eq 0 ]
  arm_pid=
else
  say "NOT RUN: the $other executable. Type: apt-get install --no-install-recommends qemu-user-static"
fi
say "$name: $([ "$bad" -eq 0 ] && echo good || echo "$bad BAD")"
[ "$bad" -eq 0 ]
