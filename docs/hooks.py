"""What mkdocs runs while it builds the site: it puts the numbers in, and lets no page load from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
NUMBERS: Final = "<!-- numbers -->"
RUNS: Final = "<!-- runs -->"

# The README's numbers, which `python benchmarks/readme_numbers.py` writes from the results.
_BLOCK: Final = re.compile(r"^<!-- numbers:begin -->\n(.*?)^<!-- numbers:end -->$", re.MULTILINE | re.DOTALL)
_LOADING: Final = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
# A stylesheet's own ways to load something.
_IN_CSS: Final = re.compile(r"""(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""")


class LoadsFromElsewhereError(Exception):
    """A page of the site would be fetched in part from another place."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what was measured in the places that are kept for it."""
    if NUMBERS in markdown:
        markdown = markdown.replace(NUMBERS, measured())
    return markdown.replace(RUNS, runs()) if RUNS in markdown else markdown


def on_post_build(config: Any, **_: Any) -> None:
    """Look through all that was written for what a browser would fetch.

    Raises:
        LoadsFromElsewhereError: Something is.
    """
    site = Path(config["site_dir"])
    found = []
    for path in sorted(site.rglob("*.html")):
        reader = _Loads()
        reader.feed(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {address}" for address in reader.elsewhere]
    for path in sorted(site.rglob("*.css")):
        addresses = _IN_CSS.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {address}" for address in addresses]
    if found:
        raise LoadsFromElsewhereError("expected a site that stands alone, found\n" + "\n".join(found))


def measured() -> str:
    """Take the block of numbers from the README, which a test holds against the results."""
    found = _BLOCK.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None, "README.md has lost the two lines around its numbers"
    return found[1].strip()


def runs(results: Path = RESULTS) -> str:
    """List every committed run, the latest first: when, where, of which tree, with what."""
    lines = ["| date | what | device | torch | commit |", "|---|---|---|---|---|"]
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*/*.json")]
    for content in sorted(contents, key=lambda content: content["date"], reverse=True):
        torch = content["versions"]["torch"]
        cells = (content["date"][:10], f"`{content['suite']}`", content["device"], torch, content["commit"])
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


class _Loads(HTMLParser):
    """Gathers the addresses on other machines from which a page would load something."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        address = values.get(_LOADING.get(tag, "")) or ""
        # A page's canonical address is named, not loaded.
        named = tag == "link" and values.get("rel") in ("canonical", "next", "prev")
        if address.startswith(("http:", "https:", "//")) and not named:
            self.elsewhere.append(address)
