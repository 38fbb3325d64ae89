"""Makes `python -m runtime` run the command `runtime`."""

from runtime.cli import main

if __name__ == "__main__":
    main()
