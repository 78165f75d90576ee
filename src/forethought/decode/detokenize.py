"""Text from a stream of tokens: no half character is ever shown, and stop strings are found wherever they begin.

`Detokenizer` turns tokens into text as soon as it is final; `StopScanner` holds back what may become a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_REPLACEMENT = "\ufffd"
# Decoding a few tokens again costs less than finding out at every token that they are settled.
_LONGEST_WINDOW = 24


class Detokenizer:
    """Incremental decoding of one sequence of tokens.

    The pieces returned by `push` and `flush` join to `decode` of all tokens. This holds for byte-level tokenizers, and
    for byte-fallback ones as long as the bytes are valid UTF-8. A few tokens before the new ones are decoded along,
    because tokenizers treat the first token of a text differently.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._num_settled = 0
        self._shown = 0

    def push(self, *tokens: int) -> str:
        """Take tokens and return the text that has become final with them, perhaps none."""
        self._window += tokens
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            return self._show(text[:-1])
        new = self._show(text)
        if len(self._window) > _LONGEST_WINDOW:
            self._settle()
        return new

    def flush(self) -> str:
        """Return the text still held back, a character that was cut off shown as the replacement character."""
        return self._show(self._decode(self._window))

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new

    def _settle(self) -> None:
        """Drop the context before the tokens that are now whole, and keep these as the next context.

        Tokens without text (special ones) are no context: the token after them would be taken for the first of a text.
        """
        context = self._window[self._num_settled :]
        text = self._decode(context)
        if text:
            self._window, self._num_settled, self._shown = context, len(context), len(text)


class StopScanner:
    """Search a stream of text for stop strings, holding back only what may still turn into one."""

    def __init__(self, stop: Sequence[str], *, include: bool = False) -> None:
        self._stop = tuple(stop)
        self._include = include
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Take more text and return what may be shown; once a stop string was found nothing more is shown."""
        if self.found is not None:
            return ""
        self._held += text
        hits = [(start, word) for word in self._stop if (start := self._held.find(word)) >= 0]
        if hits:
            start, self.found = min(hits, key=lambda hit: (hit[0], self._stop.index(hit[1])))
            return self._held[: start + len(self.found) if self._include else start]
        return self._release(len(self._held) - self._num_pending())

    def flush(self) -> str:
        """Return what was held back, once the stream has ended."""
        return "" if self.found is not None else self._release(len(self._held))

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _num_pending(self) -> int:
        longest = max((len(word) for word in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(word.startswith(self._held[-length:]) for word in self._stop):
                return length
        return 0
