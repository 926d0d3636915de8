#!/bin/sh
# Lay out the four folders as the one package they form, as symlinks under .types/: type checkers read folders, not
# package-dir tables.
set -eu
cd "$(dirname "$0")/.."
rm -rf .types
mkdir -p .types/sparsify
for part in sparsify/* converters evals; do
  ln -s "../../$part" ".types/sparsify/$(basename "$part")"
done
