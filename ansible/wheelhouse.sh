#!/usr/bin/env bash
# Fills a folder with everything the servers install: every locked package, the product itself, and
# the list of their hashes. The servers need no network but this folder.
#
#   ansible/wheelhouse.sh [FOLDER]      default: build/wheelhouse
#
# Needs a package index, or folders of packages named to pip; packages that are there already are
# kept when their hash is the locked one.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-build/wheelhouse}
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
mkdir -p "$folder"

"${pip[@]}" download --no-deps --require-hashes --find-links "$folder" --dest "$folder" \
  -r deploy/locks/node-cpu.txt 2> >(grep -v "is ignored: it is neither a file" >&2)

# The product from a clean copy, so that nothing of an earlier build gets in.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard -- appliance policies pyproject.toml LICENSE README.md |
  while IFS= read -r -d '' file; do
    if [ -e "$file" ]; then cp --parents --no-dereference "$file" "$copy"; fi
  done
SOURCE_DATE_EPOCH=315532800 "${pip[@]}" wheel --no-deps --no-build-isolation --no-index \
  --wheel-dir "$copy/dist" "$copy"
rm -f "$folder"/appliance-*.whl
cp "$copy"/dist/appliance-*.whl "$folder/"

# What each kind of server installs: the lock and the product, all by hash.
wheel=$(basename "$folder"/appliance-*.whl)
version=${wheel#appliance-}
version=${version%%-*}
sum=$(sha256sum "$folder/$wheel" | cut -d' ' -f1)
for kind in control node; do
  lock=deploy/locks/control.txt
  [ "$kind" = node ] && lock=deploy/locks/node-cpu.txt
  { cat "$lock"; echo "appliance==$version --hash=sha256:$sum"; } >"$folder/$kind.txt.tmp"
  mv "$folder/$kind.txt.tmp" "$folder/$kind.txt"
done
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $(du -sh "$folder" | cut -f1)"
