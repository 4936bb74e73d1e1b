"""The command line: one module per noun, each command a thin call of one library function."""

__all__: list[str] = []
