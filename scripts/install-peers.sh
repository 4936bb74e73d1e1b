#!/bin/sh
# Installs the packages that `gonio cache compare` measures, versions pinned, a folder each, without
# their dependencies: they run on the torch and transformers of this project's environment.
#   scripts/install-peers.sh [FOLDER]
set -eu
exec "$(dirname "$0")/../.venv/bin/python" -m gonio.pipelines.peers.install "$@"
