#!/usr/bin/env bash
# Proves the README's commands on a Debian where nothing was installed by hand.
#   test/system/clean-root.sh node|npm12|bun bookworm|trixie start|ask|ci
# node: Debian's own nodejs and npm; npm12: Node 22 and npm 12 from the registry; bun: only the bun binary.
# start: an ordinary user is told what to type; root gets a desktop without a terminal; SIGINT and SIGTERM end all.
# ask: the same on a terminal, where it must ask. ci: the tests. KEEP=1 keeps the root.
set -u
. "$(dirname "$0")/roots.sh"
case "${1:-} ${2:-} ${3:-}" in
"node bookworm "* | "node trixie "* | "npm12 bookworm "* | "npm12 trixie "* | "bun bookworm "* | "bun trixie "*) ;;
*) die "usage: clean-root.sh node|npm12|bun bookworm|trixie start|ask|ci" ;;
esac
case ${3:-} in start | ask | ci) ;; *) die "the third word is start, ask or ci" ;; esac
isolate "$@"
kind=$1 suite=$2 what=$3
name=$suite-$kind-$what
root=$roots/run-$name

finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  processes_in "$root" | while read -r pid _; do kill -KILL "$pid" 2>/dev/null; done
  sleep 0.3
  if [ -n "${KEEP:-}" ]; then unmount_from "$root"; else remove_root "$root"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

base_tarball "$kind" "$suite"
remove_root "$root"
mkdir -p "$root" "$roots/logs" "$roots/shots"
tar -C "$root" -xf "$roots/$suite-$kind.tar.zst"
mount_into "$root"
# The tests also run the server as other users, who cannot enter /root.
place=/root/checkout
[ "$what" != ci ] || place=/srv/checkout
checkout_to "$root$place"
before=$(megabytes "$root")
if [ "$kind" != bun ]; then
  start="npx --yes bun start" typed="npx bun start" ci="npx --yes bun run ci"
  say "$name: node $(chroot "$root" node --version), npm $(chroot "$root" npm --version), $before MB"
else
  start="bun start" typed="bun start" ci="bun run ci"
  say "$name: bun $(chroot "$root" bun --version), no node, $before MB"
fi

# Runs a command line in the checkout of a user, as the process $!.
run_as() { # run_as user command
  local user=$1 home=/root checkout=$place
  [ "$user" = root ] || home=/home/$user checkout=/home/$user/checkout
  local port=()
  [ -z "${JUPYTER_DESKTOP_PORT:-}" ] || port=("JUPYTER_DESKTOP_PORT=$JUPYTER_DESKTOP_PORT")
  exec chroot --userspec="$user:$user" --groups="" "$root" env -i "${env_in_root[@]}" "${port[@]}" TERM=xterm \
    HOME="$home" USER="$user" sh -c "cd $checkout && exec $2"
}
installed() { chroot "$root" dpkg-query -W tigervnc-standalone-server >/dev/null 2>&1; }
not_installed() { ! installed; }

add_user() {
  chroot "$root" useradd --create-home --shell /bin/bash someone
  checkout_to "$root/home/someone/checkout"
  chroot "$root" chown -R someone:someone /home/someone
}

report_sizes() {
  say "      root $before MB -> $(megabytes "$root") MB; apt downloaded $(megabytes "$root/var/cache/apt/archives") MB," \
    "~/.npm $(megabytes "$root/root/.npm") MB, ~/.bun $(megabytes "$root/root/.bun") MB," \
    "node_modules $(megabytes "$root$place/node_modules") MB"
}

# Without a terminal: starts, looks, sends a signal, and looks at what is left.
desktop_then() { # desktop_then user signal-target name
  local user=$1 signal=$2 shot=$name-$3 log=$roots/logs/$name-$3.log began=$EPOCHREALTIME pid status
  say "$user: $start, then $signal"
  set -m # a process group of its own, as a shell on a terminal makes it
  (run_as "$user" "$start") >"$log" 2>&1 </dev/null &
  pid=$!
  set +m
  if ! within 900 started_or_ended "$log" "$pid" || ! has_url "$log"; then
    say "BAD   no desktop; $log ends with:"
    tail -n 15 "$log"
    bad=$((bad + 1))
    kill -KILL -- "-$pid" 2>/dev/null
    return
  fi
  say "      its address $(since "$began") s after the command"
  check_desktop "$log" "$shot" "$began"
  say "      processes:"
  processes_in "$root" | cut -c 1-110
  if [ "$signal" = "SIGINT to the group" ]; then kill -INT -- "-$pid"; else kill -TERM "$pid"; fi
  check_nothing_left "$root" "$pid"
  wait "$pid"
  status=$?
  say "      exit code $status"
}
started_or_ended() { has_url "$1" || ! kill -0 "$2" 2>/dev/null; }

start_mode() {
  add_user
  local log=$roots/logs/$name-user.log
  (run_as someone "$start") >"$log" 2>&1 </dev/null
  local status=$?
  check "an ordinary user is refused ($status)" [ "$status" -ne 0 ]
  check "and told what to type" grep -q '^  sudo apt-get update && sudo apt-get install ' "$log"
  check "and nothing was installed" not_installed
  cat "$log"
  desktop_then root "SIGINT to the group" first
  report_sizes
  desktop_then root "SIGTERM to the outermost process" second
  desktop_then someone "SIGINT to the group" user
}

# On a terminal: types an answer when asked.
terminal_began=
on_terminal() { # on_terminal log
  : >"$1"
  terminal_began=$EPOCHREALTIME
  rm -f "$root/in"
  mkfifo "$root/in"
  exec 9<>"$root/in"
  export -f run_as
  local line
  line="root=$(printf %q "$root"); place=$place; env_in_root=($(printf '%q ' "${env_in_root[@]}")); run_as root $(printf %q "$typed")"
  SHELL=/bin/bash script -qefc "$line" "$1" <&9 >/dev/null 2>&1 &
}
asked() { grep -qF "$2" "$1"; }
answer_npx() {
  [ "$kind" != bun ] || return 0
  check "npx asks before it installs bun" within 60 asked "$1" "Ok to proceed?"
  printf 'y\r' >&9
}

ask_mode() {
  local log=$roots/logs/$name.log pid status
  say "on a terminal: $typed, answer n"
  on_terminal "$log"
  pid=$!
  answer_npx "$log"
  check "it asks first" within 120 asked "$log" "Install them now?"
  printf 'n\r' >&9
  wait "$pid"
  status=$?
  check "n ends it ($status)" [ "$status" -ne 0 ]
  check "and nothing was installed" not_installed
  sed 's/.*\x1b\[K//' "$log" # without npm's progress bar
  check_nothing_left "$root" "$pid"

  say "on a terminal: $typed, answer y"
  on_terminal "$log"
  pid=$!
  check "it asks first" within 120 asked "$log" "Install them now?"
  printf 'y\r' >&9
  check "y goes on to a desktop" within 900 started_or_ended "$log" "$pid"
  say "      its address $(since "$terminal_began") s after the command"
  grep -A 3 'Desktop: ' "$log"
  check_desktop "$log" "$name" "$terminal_began"
  say "Ctrl-C"
  printf '\003' >&9
  check_nothing_left "$root" "$pid"
  wait "$pid"
  say "      exit code $?"
  report_sizes
}

ci_mode() {
  local log=$roots/logs/$name.log began=$EPOCHREALTIME
  say "root: $ci"
  (run_as root "nice $ci") >"$log" 2>&1 </dev/null
  local status=$?
  say "      exit code $status after $(since "$began") s; $log ends with:"
  tail -n 30 "$log"
  check "bun test began" grep -q '^bun test v' "$log"
  check "all tests pass" [ "$status" -eq 0 ]
  check "no process left" within 15 none_in "$root"
  report_sizes
}

"${what}_mode"
say "$name: $([ "$bad" -eq 0 ] && echo good || echo "$bad BAD")"
[ "$bad" -eq 0 ]
