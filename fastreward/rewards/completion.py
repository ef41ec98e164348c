"""From what a trainer hands over to the text that is scored.

Two steps, each usable alone: `completion_text` reads a plain string or a conversation, and an `Extractor`
takes from that text the part that a reward is about. Neither raises on what a model may have written: text
that is missing, cut off or without the expected tags yields ``None``, and the reward decides what that is
worth.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fastreward.errors import InputError

Completion: TypeAlias = str | Sequence[Mapping[str, Any]]
"""A plain string, or the messages of a conversation."""

Extract: TypeAlias = str | re.Pattern[str] | Callable[[str], str | None] | None
"""Which part of a text counts: a tag's name, a pattern, a function, or ``None`` for all of it."""

_THINK_TAG = re.compile(r"<(/?)think>", re.IGNORECASE)
_TAG_NAME = re.compile(r"[\w-]+")


def completion_text(completion: object) -> str:
    """Read the text of one completion.

    Args:
        completion: A string, which is returned as it is; or a conversation, a list of messages with ``role``
            and ``content``, of which the last message of the assistant that has text counts. ``content`` is a
            string, ``None`` or absent (a message of tool calls alone), or a list of blocks, of which those of
            type ``"text"`` are joined and all others (images, audio) skipped.

    Returns:
        The text; ``""`` for a conversation in which the assistant wrote none.

    Raises:
        InputError: The completion is neither, or a message has no such form. The message does not say which
            completion of a batch it was: the caller knows.

    Example:
        >>> completion_text("The heart pumps blood.")
        'The heart pumps blood.'
        >>> completion_text([{"role": "assistant", "content": [{"type": "text", "text": "It pumps."}]}])
        'It pumps.'
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list | tuple):
        raise InputError(
            "a string or a list of chat messages as completion",
            describe(completion),
            "Pass the generated text, or messages with 'role' and 'content'.",
        )
    texts = [_message_text(message) for message in completion]
    return next((text for text in reversed(texts) if text.strip()), "")


def without_thinking(text: str) -> str | None:
    """Remove a model's thinking from its text.

    ``<think>…</think>`` blocks go. A closing tag without an opening one ends thinking that began before the
    text did (chat templates may put ``<think>`` at the end of the prompt): everything up to it goes. White
    space around what remains goes with the thinking; a text without thinking is returned as it is. Tags are
    read without regard to case.

    Args:
        text: What the model wrote.

    Returns:
        The text that remains, or ``None`` if a ``<think>`` is never closed: the model did not get as far as
        an answer.

    Example:
        >>> without_thinking("<think>Left or right?</think> Left.")
        'Left.'
        >>> without_thinking("Left or right?</think> Left.")
        'Left.'
        >>> without_thinking("<think>Left or") is None
        True
    """
    kept: list[str] = []
    start = 0  # of the text after the last tag
    thinking = False
    for tag in _THINK_TAG.finditer(text):
        if tag[1]:
            if not thinking:
                kept.clear()
            start, thinking = tag.end(), False
        elif not thinking:
            kept.append(text[start : tag.start()])
            thinking = True
    if thinking:
        return None
    return "".join([*kept, text[start:]]).strip() if start else text


@dataclass(frozen=True)
class Extractor:
    """Takes the part to score from a completion's text.

    It pickles with all that it holds; a function must be importable by name for that, as always with pickle.

    Args:
        extract: What counts, once thinking is stripped.
            ``None``: the whole text.
            A tag's name: what stands in the last complete pair of such tags, ``<explanation>…</explanation>``
            for ``"explanation"``, without regard to case and with the white space around it removed. A tag
            that is opened and never closed is no pair.
            A compiled pattern: its last match that is not empty; of this the group named ``text``, else the
            first group, else the whole match.
            A function from the text to the part, or to ``None`` where there is none.
        strip_thinking: Whether `without_thinking` comes first.

    Raises:
        InputError: ``extract`` is none of these, or the string is no tag's name.

    Example:
        >>> Extractor("explanation")(
        ...     "<think>Hm.</think> <Explanation> It pumps. </Explanation> <answer>B</answer>"
        ... )
        'It pumps.'
        >>> Extractor(re.compile(r"Because: (.+)"))("B. Because: it pumps.")
        'it pumps.'
        >>> Extractor("explanation")("It pumps.") is None
        True
    """

    extract: Extract = None
    strip_thinking: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.extract, str):
            self._check_tag(self.extract)
        elif not (
            self.extract is None
            or (isinstance(self.extract, re.Pattern) and isinstance(self.extract.pattern, str))
            or callable(self.extract)
        ):
            raise InputError(
                "None, a tag's name, a compiled pattern of str or a function as extract",
                describe(self.extract),
                "Pass extract='explanation' for what stands in <explanation>…</explanation>.",
            )

    def __call__(self, text: str) -> str | None:
        """Extract from one text.

        Args:
            text: A completion's text, as `completion_text` returns it.

        Returns:
            The part to score, never blank, or ``None`` where there is nothing to score.

        Raises:
            InputError: The user's function returned neither a string nor ``None``.
        """
        rest = without_thinking(text) if self.strip_thinking else text
        if rest is None or not rest.strip():
            return None
        found = self._find(rest)
        return found if found and found.strip() else None

    def _find(self, text: str) -> str | None:
        if self.extract is None:
            return text
        if isinstance(self.extract, str):
            return _last_tagged(self.extract, text)
        if isinstance(self.extract, re.Pattern):
            return _last_match(self.extract, text)
        found: object = self.extract(text)
        if found is None or isinstance(found, str):
            return found
        raise InputError(
            "a string or None from the extract function",
            describe(found),
            "Return the part to score, or None where there is none.",
        )

    def _check_tag(self, tag: str) -> None:
        if not _TAG_NAME.fullmatch(tag):
            raise InputError(
                "a tag's name (letters, digits, '_' and '-') as extract",
                repr(tag),
                "Pass re.compile(...) to extract by a pattern.",
            )
        if self.strip_thinking and tag.lower() == "think":
            raise InputError(
                "a tag other than 'think' while thinking is stripped",
                repr(tag),
                "Pass strip_thinking=False to score the thinking itself.",
            )


def describe(value: object) -> str:
    """Name a value for an error message: its type, and the value itself, shortened.

    Args:
        value: Anything.

    Returns:
        The description.

    Example:
        >>> describe(3)
        'int 3'
    """
    return f"{type(value).__name__} {reprlib.repr(value)}"


def _message_text(message: object) -> str:
    """The text of an assistant's message; ``""`` for any other, whatever it holds."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InputError(
            "chat messages with 'role' and 'content'",
            describe(message),
            "Pass a conversation as a list of such messages, or the generated text as one string.",
        )
    content = message.get("content") if message["role"] == "assistant" else None
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list | tuple):
        return "".join(_block_text(block) for block in content)
    raise InputError(
        "a string, None or a list of blocks as a message's content",
        describe(content),
        "Pass the message's text as one string.",
    )


def _block_text(block: object) -> str:
    """The text of one content block; ``""`` for an image and the like."""
    if isinstance(block, Mapping) and isinstance(block.get("type"), str):
        if block["type"] != "text":
            return ""
        if isinstance(text := block.get("text"), str):
            return text
    raise InputError(
        "content blocks like {'type': 'text', 'text': '…'}",
        describe(block),
        "Give each block a 'type', and a block of text its 'text'.",
    )


def _last_tagged(tag: str, text: str) -> str | None:
    """What stands in the last complete pair of tags; of nested ones the innermost. Linear in the text."""
    found = start = None
    for match in re.finditer(rf"<(/?){re.escape(tag)}>", text, re.IGNORECASE):
        if not match[1]:
            start = match.end()
        elif start is not None:
            found, start = text[start : match.start()].strip(), None
    return found


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    """The text of the last match that is not empty (``.*`` also matches nothing at the very end)."""
    group = "text" if "text" in pattern.groupindex else min(pattern.groups, 1)
    found = [match[group] for match in pattern.finditer(text) if match[0] or match[group]]
    return found[-1] if found else None
