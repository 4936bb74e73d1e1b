"""Other people's cache quantizers, each in a process and a folder of its own.

The parent imports nothing of them: a peer's driver (one small module per package) runs in a child
of this interpreter with the peer's folder on its path, and answers one tensor at a time. Nothing
is imported here, so that the child loads little more than torch and its package.
"""

__all__: list[str] = []
