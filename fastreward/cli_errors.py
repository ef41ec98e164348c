"""How every command of the command line says what the user can mend."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fastreward.errors import FastRewardError


@contextmanager
def errors_on_stderr() -> Iterator[None]:
    """Turn what the user can mend into one message and exit code 2.

    Example:
        >>> with errors_on_stderr():
        ...     pass
    """
    try:
        yield
    except (FastRewardError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise  # whoever read our output has left: typer ends quietly
        typer.echo(f"fastreward: {error}", err=True)
        raise typer.Exit(2) from error
