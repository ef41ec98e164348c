"""`python -m fastreward` is the command `fastreward`."""

from fastreward.cli import main

if __name__ == "__main__":
    main()
