#!/usr/bin/env bash
# Throw-away Debian servers with systemd and sshd, each in a network namespace of its own, for trying
# the roles without machines to spare. Linux, root; no container engine.
#
#   ansible/lab/lab.sh up NAME...     boots the servers
#   ansible/lab/lab.sh run CMD...     runs a command inside the lab's network
#   ansible/lab/lab.sh down           ends and removes all of it; the base system is kept
#
# LAB is the working folder (build/lab), MIRROR the package mirror (debootstrap's own choice). Every
# server sees $LAB/objects, which stands for the site's shared file system, and build/wheelhouse,
# read-only.
set -euo pipefail
cd "$(dirname "$0")/../.."
LAB=$(realpath -m "${LAB:-build/lab}")
BASE=$LAB/base
NET=10.77.0
PREFIX=appl
PACKAGES=systemd,systemd-sysv,dbus,openssh-server,python3,python3-venv,iproute2,ca-certificates,libnuma1,python3-apt

need() {
  local tool missing=()
  # One at a time: asked for several, `command -v` is content with any.
  for tool in debootstrap systemd-nspawn ip ssh-keygen; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "installing what the lab needs (${missing[*]} is missing)" >&2
  timeout 300 apt-get update -qq
  DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends \
    debootstrap systemd-container iproute2 openssh-client >/dev/null
}

base() {
  [ -e "$BASE/.complete" ] && return
  rm -rf "$BASE"
  echo "building the base system in $BASE: a minute or two; its log is $LAB/debootstrap.log" >&2
  timeout 1200 debootstrap --variant=minbase --include="$PACKAGES" bookworm "$BASE" ${MIRROR:+"$MIRROR"} \
    >"$LAB/debootstrap.log" || { tail -n 5 "$LAB/debootstrap.log" >&2; exit 1; }
  rm -rf "$BASE"/var/cache/apt/archives/*.deb
  touch "$BASE/.complete"
}

# Boots one server and stays: a guest that reboots makes nspawn leave with 133.
server() {
  local name=$1 code
  # A cgroup of its own: in a shared one the guests' systemds delete each other's slices.
  for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
    [ -f "$hierarchy/cgroup.procs" ] || continue
    mkdir -p "$hierarchy/$PREFIX-$name"
    echo "$BASHPID" >"$hierarchy/$PREFIX-$name/cgroup.procs"
  done
  while :; do
    code=0
    systemd-nspawn --quiet --directory="$LAB/$name/root" --machine="$PREFIX-$name" --boot \
      --register=no --keep-unit --network-namespace-path="/run/netns/$PREFIX-$name" \
      --bind="$LAB/objects:/srv/appliance/objects" --bind-ro="$PWD/build/wheelhouse:/srv/wheelhouse" \
      --console=pipe </dev/null || code=$?
    [ "$code" = 133 ] || exit "$code"
  done
}

network() {
  ip netns add "$PREFIX-lab"
  ip -n "$PREFIX-lab" link add br0 type bridge
  ip -n "$PREFIX-lab" addr add "$NET.1/24" dev br0
  ip -n "$PREFIX-lab" link set br0 up
  ip -n "$PREFIX-lab" link set lo up
}

plug() {
  local name=$1 number=$2 space=$PREFIX-$1
  ip netns add "$space"
  ip -n "$PREFIX-lab" link add "v$number" type veth peer name host0 netns "$space"
  ip -n "$PREFIX-lab" link set "v$number" master br0 up
  ip -n "$space" addr add "$NET.$((10 + number))/24" dev host0
  ip -n "$space" link set host0 up
  ip -n "$space" link set lo up
}

up() {
  local number=0 name
  mkdir -p "$LAB"
  need
  base
  [ -z "$(servers)" ] || { echo "the lab is up already: ansible/lab/lab.sh down" >&2; exit 1; }
  [ -f "$LAB/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$LAB/key"
  rm -rf "$LAB/objects"
  mkdir -p "$LAB/objects"
  network
  echo "booting $*" >&2
  for name in "$@"; do
    number=$((number + 1))
    plug "$name" "$number"
    mkdir -p "$LAB/$name"/{upper,work,root}
    mount -t overlay overlay \
      -o "lowerdir=$BASE,upperdir=$LAB/$name/upper,workdir=$LAB/$name/work" "$LAB/$name/root"
    install -d -m 700 "$LAB/$name/root/root/.ssh"
    install -m 600 "$LAB/key.pub" "$LAB/$name/root/root/.ssh/authorized_keys"
    echo "$name" >"$LAB/$name/root/etc/hostname"
    # As a hardened site has it: files that are made belong to their maker alone.
    echo "session optional pam_umask.so umask=0077" >>"$LAB/$name/root/etc/pam.d/sshd"
    rm -f "$LAB/$name/root/etc/resolv.conf"
    systemd-id128 new >"$LAB/$name/root/etc/machine-id"
    server "$name" >"$LAB/$name/console.log" 2>&1 &
    echo $! >"$LAB/$name/pid"
    disown
  done
  for number in $(seq $#); do answer "$NET.$((10 + number))"; done
}

answer() {
  for _ in $(seq 240); do
    ip netns exec "$PREFIX-lab" timeout 2 bash -c "</dev/tcp/$1/22" 2>/dev/null && return
    sleep 0.5
  done
  echo "$1 does not answer on port 22 after two minutes: see console.log in $LAB" >&2
  exit 1
}

servers() {
  local file
  for file in "$LAB"/*/pid; do [ -f "$file" ] && basename "$(dirname "$file")"; done
  return 0
}

down() {
  local name pid child children alive
  for name in $(servers); do
    pid=$(cat "$LAB/$name/pid")
    children=
    # After a restart of this machine the number may be somebody else's.
    if grep -qs "$PREFIX-$name" "/proc/$pid/cgroup"; then
      children=$(pgrep -P "$pid" || true)
      kill "$pid" 2>/dev/null || true
    fi
    # nspawn takes SIGTERM as an order to power off; after 20 seconds it is killed.
    for child in $children; do kill "$child" 2>/dev/null || true; done
    for _ in $(seq 80); do
      alive=
      for child in $children; do [ -d "/proc/$child" ] && alive=1; done
      [ -n "$alive" ] || break
      sleep 0.25
    done
    for child in $children; do kill -9 "$child" 2>/dev/null || true; done
    mountpoint -q "$LAB/$name/root" && { umount "$LAB/$name/root" || umount -l "$LAB/$name/root"; }
    ip netns del "$PREFIX-$name" 2>/dev/null || true
    rm -rf "${LAB:?}/$name"
    for _ in $(seq 20); do
      find /sys/fs/cgroup -depth -type d -path "*/$PREFIX-$name*" -exec rmdir {} + 2>/dev/null || true
      [ -n "$(find /sys/fs/cgroup -maxdepth 2 -type d -name "$PREFIX-$name" 2>/dev/null)" ] || break
      sleep 0.25
    done
  done
  ip netns del "$PREFIX-lab" 2>/dev/null || true
  rm -rf "$LAB"/{objects,home,corpus,password,ca.pem,key,key.pub}
}

case ${1:-} in
  up) shift; up "$@" ;;
  down) down ;;
  run) shift; exec ip netns exec "$PREFIX-lab" "$@" ;;
  *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
