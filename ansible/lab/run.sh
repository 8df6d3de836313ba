#!/usr/bin/env bash
# The lab from nothing to nothing: three servers, the playbook twice, a job that crosses two servers.
# Writes build/lab.json. KEEP=1 leaves the servers up.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "ansible/lab/run.sh makes servers in namespaces: run it as root" >&2; exit 1; }

leave() {
  [ -n "${KEEP:-}" ] && { echo "the servers stay up; ansible/lab/lab.sh down ends them"; return; }
  ansible/lab/lab.sh down
}

echo "filling build/wheelhouse (1 GB the first time)" >&2
ansible/wheelhouse.sh build/wheelhouse
ansible/lab/lab.sh down
trap leave EXIT
ansible/lab/lab.sh up head node1 node2
# In the background, so that an interrupt is heard at once; it ends the whole group of `timeout`.
PYTHONPATH=$PWD timeout --kill-after=10 3000 \
  ansible/lab/lab.sh run .venv/bin/python ansible/lab/journey.py &
journey=$!
trap 'kill "$journey" 2>/dev/null; wait "$journey" || true; exit 130' INT TERM
wait "$journey"
