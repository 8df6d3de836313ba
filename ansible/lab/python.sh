#!/usr/bin/env bash
# The unit tests that start neither torch nor vLLM, in a throw-away Debian 13 on its own Python 3.13.
# Linux, root, Debian's mirror, a package index; no container engine. The base system stays in build/lab.
#
#   ansible/lab/python.sh [PYTEST ARGUMENTS]     default: all of them
#
# MIRROR is the package mirror (debootstrap's own choice).
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "ansible/lab/python.sh makes a system in a folder: run it as root" >&2; exit 1; }
LAB=$(realpath -m "${LAB:-build/lab}")
BASE=$LAB/trixie
WHEELS=$LAB/wheels-3.13
TESTS=(tests/core tests/crypto tests/wire tests/client tests/cli tests/control tests/gateway tests/node)
# They start ranks, or read what torch and numpy write.
LEFT_OUT=(tests/crypto/test_tensors.py tests/node/test_abilities.py tests/node/test_agent.py
  tests/node/test_launcher.py tests/node/test_main.py)
mkdir -p "$LAB"

if ! command -v debootstrap >/dev/null; then
  echo "installing debootstrap" >&2
  timeout 300 apt-get update -qq
  DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq --no-install-recommends debootstrap >/dev/null
fi
if [ ! -e "$BASE/.complete" ]; then
  rm -rf "$BASE"
  echo "building Debian 13 in $BASE (a minute or two)" >&2
  timeout 1200 debootstrap --variant=minbase \
    --include=python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates,openssh-client,git,procps \
    trixie "$BASE" ${MIRROR:+"$MIRROR"} >"$LAB/debootstrap-trixie.log" ||
    { tail -n 5 "$LAB/debootstrap-trixie.log" >&2; exit 1; }
  rm -rf "$BASE"/var/cache/apt/archives/*.deb
  touch "$BASE/.complete"
fi
ansible/wheelhouse.sh --kind test --python 3.13 "$WHEELS"

# Nothing of it reaches the network, and nothing stays: files over the base are in memory.
export BASE WHEELS SOURCE=$PWD
exec unshare --mount --pid --fork --net --kill-child bash -euo pipefail -c '
  up=$(mktemp -d)
  mount -t tmpfs -o mode=0755 tmpfs "$up"
  mkdir "$up/upper" "$up/work" "$up/root"
  mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$up/upper,workdir=$up/work" "$up/root"
  root=$up/root
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount -t tmpfs tmpfs "$root/tmp"
  mount -t tmpfs tmpfs "$root/run"
  for device in null zero full random urandom tty; do
    touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
  done
  ln -sfn /proc/self/fd "$root/dev/fd"
  mkdir -p "$root/dev/pts" "$root/dev/shm" "$root/wheels" "$root/src"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  ln -sfn pts/ptmx "$root/dev/ptmx"
  mount -t tmpfs tmpfs "$root/dev/shm"
  mount --bind "$WHEELS" "$root/wheels"
  # A copy: tests leave compiled files beside sources.
  git -C "$SOURCE" ls-files -z --cached --others --exclude-standard |
    tar -C "$SOURCE" --null --files-from=- --ignore-failed-read -c 2>/dev/null | tar -C "$root/src" -x
  echo "127.0.0.1 localhost" >"$root/etc/hosts"
  exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/venv/bin:/usr/bin:/bin LANG=C.UTF-8 bash -euo pipefail -c "
    python3 -c \"import fcntl,socket,struct; s=socket.socket(); fcntl.ioctl(s,0x8914,struct.pack(\\\"16sh\\\",b\\\"lo\\\",1))\"
    python3 -m venv /venv
    echo installing \$(grep -c == /wheels/test-3.13.txt) packages >&2
    pip install --quiet --no-index --no-deps --require-hashes --find-links /wheels -r /wheels/test-3.13.txt
    cd /src
    python --version
    # Not in place of this shell: it is the first process, and takes in what others leave.
    python -m pytest -q \"\$@\" || exit \$?
  " pytest "$@"
' python "${@:-${TESTS[@]}}" "${LEFT_OUT[@]/#/--ignore=}" \
  --deselect tests/core/test_needs.py::test_this_python_has_all_of_it
