from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fastreward.progress import ScoringProgress

SCRIPT = """
from fastreward import progress
progress.PATIENCE_S = {patience_s}
with progress.ScoringProgress(100, None) as bar:
    bar.advance(50)
    bar.advance(50)
"""


def on_a_terminal(patience_s: float) -> str:
    """What a run shows whose standard error is a terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", SCRIPT.format(patience_s=patience_s)]
    subprocess.run(command, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"})
    os.write(theirs, b"END")  # so that there is something to read where nothing was shown
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)
    return shown.removesuffix("END")


def test_a_bar_appears_on_a_terminal_once_patience_is_over():
    assert "scoring" in on_a_terminal(patience_s=0.0)


def test_what_is_done_soon_shows_nothing():
    assert on_a_terminal(patience_s=60.0) == ""


@pytest.mark.parametrize("enabled", [None, False])
def test_nothing_is_shown_off_a_terminal_or_when_it_is_switched_off(capfd, monkeypatch, enabled):
    monkeypatch.setattr("fastreward.progress.PATIENCE_S", 0.0)
    with ScoringProgress(100, enabled) as bar:
        bar.advance(100)
    assert capfd.readouterr() == ("", "")


def test_the_bar_is_closed_when_the_work_fails():
    bar = ScoringProgress(100, True)

    def work():
        with bar:
            bar.advance(10)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        work()
    assert bar._bar is not None
    assert not bar._bar.live.is_started
