#!/bin/sh
# Installs what `bun run test:system` needs beside what test/setup.sh installs: other VNC servers, other desktops, and
# the lock screens that must not lock. Debian 12 alone: its versions are what the README's table names.
set -eu

servers="x11vnc xvfb tightvncserver xfonts-base qemu-system-x86 seabios wayvnc sway foot wl-clipboard autocutsel"
desktops="lxqt-core lxqt-notificationd openbox qterminal mate-desktop-environment-core mate-terminal icewm icewm-common"
lockers="light-locker mate-screensaver xscreensaver xfce4-screensaver"
cluster="slurm-wlm munge curl"

missing=
for package in $servers $desktops $lockers $cluster; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' && continue
  # xfce4-screensaver is not in every release: what the archive does not have is not asked for.
  apt-cache show "$package" 2>/dev/null | grep -q "^Package:" && missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
  echo "These tests need packages that only root can install. Type: sudo sh $0" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update
# shellcheck disable=SC2086 # a list of words
apt-get install -y --no-install-recommends $missing
