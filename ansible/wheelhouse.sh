#!/usr/bin/env bash
# Fills a folder with everything that servers install: locked packages, the product itself, and the
# lists of their hashes. The servers need no network but this folder.
#
#   ansible/wheelhouse.sh [--kind KIND]... [--python X.Y]... [--dry-run] [FOLDER]
#
#   --kind     control, node-cpu or node-gpu; default: control and node-cpu
#   --python   of the servers: 3.11, 3.12 or 3.13; default: 3.11
#   --dry-run  says what would be fetched, and how large it is; fetches nothing
#   FOLDER     default: build/wheelhouse. One folder may hold several kinds and Pythons.
#
# Needs a package index, or folders of packages named to pip; packages that are there already are
# kept when their hash is the locked one.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  sed -n '2,13s/^# \{0,1\}//p' ansible/wheelhouse.sh >&2
  exit 2
}

kinds=()
pythons=()
dry=
folder=build/wheelhouse
while [ $# -gt 0 ]; do
  case $1 in
    --kind) kinds+=("${2:?--kind needs control, node-cpu or node-gpu}"); shift 2 ;;
    --python) pythons+=("${2:?--python needs a version, such as 3.13}"); shift 2 ;;
    --dry-run) dry=1; shift ;;
    -*) usage ;;
    *) folder=$1; shift ;;
  esac
done
[ ${#kinds[@]} -gt 0 ] || kinds=(control node-cpu)
[ ${#pythons[@]} -gt 0 ] || pythons=(3.11)

for python in "${pythons[@]}"; do
  for kind in "${kinds[@]}"; do
    [ -f "deploy/locks/$python/$kind.txt" ] && continue
    echo "there is no lock of $kind for Python $python; there are:" >&2
    find deploy/locks/3.* -name '*.txt' ! -name 'test.txt' | sort | sed 's|deploy/locks/|  |; s|\.txt||; s|/| |' >&2
    exit 1
  done
done

python=.venv/bin/python
pip=("$python" -m pip --disable-pip-version-check --quiet)
if [ -n "$dry" ]; then
  for version in "${pythons[@]}"; do
    for kind in "${kinds[@]}"; do
      "$python" ansible/wheel_sizes.py --python "$version" "deploy/locks/$version/$kind.txt"
    done
  done
  exit
fi

mkdir -p "$folder"
for version in "${pythons[@]}"; do
  for kind in "${kinds[@]}"; do
    lock=deploy/locks/$version/$kind.txt
    echo "fetching $(grep -c '==' "$lock") packages of $kind for Python $version" >&2
    "${pip[@]}" download --no-deps --require-hashes --only-binary=:all: --python-version "$version" \
      --find-links "$folder" --dest "$folder" -r "$lock" \
      2> >(grep -v "is ignored: it is neither a file" >&2)
  done
done

# The product from a clean copy, so that nothing of an earlier build gets in.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard -- appliance policies pyproject.toml LICENSE README.md |
  while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then cp --parents --no-dereference "$file" "$copy"; fi
  done
# What is in a wheel has the modes of the files that it was made of.
chmod -R u=rwX,go=rX "$copy"
(umask 022 && SOURCE_DATE_EPOCH=315532800 "${pip[@]}" wheel --no-deps --no-build-isolation --no-index \
  --wheel-dir "$copy/dist" "$copy")
rm -f "$folder"/appliance-*.whl
cp "$copy"/dist/appliance-*.whl "$folder/"

# What each kind of server installs: the lock and the product, all by hash.
wheel=$(basename "$folder"/appliance-*.whl)
release=${wheel#appliance-}
release=${release%%-*}
sum=$(sha256sum "$folder/$wheel" | cut -d' ' -f1)
for version in "${pythons[@]}"; do
  for kind in "${kinds[@]}"; do
    list=$folder/$kind-$version.txt
    { cat "deploy/locks/$version/$kind.txt"; echo "appliance==$release --hash=sha256:$sum"; } >"$list.tmp"
    mv "$list.tmp" "$list"
  done
done
# Read by services of other users than the one who made it.
chmod -R u=rwX,go=rX "$folder"
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f1)"
