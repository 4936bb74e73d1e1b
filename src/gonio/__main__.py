"""``python -m gonio``, which is how launchers such as accelerate start the command."""

from gonio.cli.main import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
