"""Peers installed from the package index, pinned, each into a folder of its own.

Dependencies are named one by one and nothing else is pulled in: every peer runs on the torch and
transformers of this environment, which is what makes their numbers comparable.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gonio.errors import PeerError
from gonio.files import replace_folder
from gonio.models.gguf import cache_folder
from gonio.pipelines.peers.registry import PEERS, Peer

__all__ = ["install_command", "install_peer", "main", "peers_folder"]


def peers_folder() -> Path:
    """Where peers are installed unless a folder is named: below gonio's cache folder."""
    return cache_folder() / "peers"


def install_command(peer: Peer, target: Path) -> list[str]:
    """The pip command that fills ``target``."""
    return [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-deps", "--no-compile", "--target", str(target)),
        f"{peer.distribution}=={peer.version}",
        *peer.requires,
    ]


def install_peer(peer: Peer, root: Path) -> Path | None:
    """Install a peer below ``root``; a folder that is there is left alone.

    Returns:
        Its folder, None for a peer that is part of this environment.

    Raises:
        PeerError: pip failed.
        OutputError: The folder cannot be written.
    """
    if peer.is_bundled:
        return None
    folder = peer.folder(root)
    if folder.is_dir():
        return folder
    with replace_folder(folder) as staging:
        done = subprocess.run(
            install_command(peer, staging), capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PeerError(
                f"cannot install {peer.distribution}=={peer.version} into {folder}: {last}\n"
                "Check that a package index can be reached, or leave the peer out with --peers."
            )
    return folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Install every peer: ``python -m gonio.pipelines.peers.install [FOLDER]``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    root = Path(given[0]) if given else peers_folder()
    failed = 0
    for peer in PEERS.values():
        try:
            line = f"{peer.name}: {install_peer(peer, root) or 'part of this environment'}"
        except PeerError as error:
            failed, line = 1, f"{peer.name}: failed\n{error}"
        sys.stdout.write(f"{line}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
