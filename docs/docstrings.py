"""What griffe runs on each docstring: it turns our headings into those that its parser knows."""

from __future__ import annotations

import re
from typing import Any, Final

from griffe import Extension, Object

# With an s it is a section of doctests; without, a box of prose in which >>> is a quotation.
_EXAMPLE: Final = re.compile(r"^( *)Example:$", re.MULTILINE)
# How reStructuredText begins a literal block: Markdown needs the indentation alone.
_LITERAL_LINE: Final = re.compile(r"^ *::$\n", re.MULTILINE)
_LITERAL: Final = re.compile(r"::$", re.MULTILINE)


class Headings(Extension):
    """Rewrites the docstrings of all that is shown."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring, in memory."""
        if obj.docstring is not None:
            text = _EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            obj.docstring.value = _LITERAL.sub(":", _LITERAL_LINE.sub("", text))
