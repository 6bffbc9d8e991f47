"""Texts in the encoding of a data set, and how many would also be UTF-8."""

from __future__ import annotations

from collections import Counter

from mmsa.raw_files.text_files import decoded, marked_encoding

_NEARLY_ALL = 0.9  # of the texts beyond ASCII: by chance, few are valid in two encodings
_FEW = 3  # texts: fewer prove nothing


class CountedTexts:
    """Decodes texts in the encoding `own` of a data set, or in the `stated` one, and counts those
    that would also be UTF-8."""

    def __init__(self, own: str, stated: str | None) -> None:
        self._encoding = stated or own
        self._is_stated = stated is not None
        self._counts: Counter[str] = Counter()

    def decoded(self, content: bytes) -> str:
        """The text. Raises `UnicodeDecodeError`.

        One encoding, never "UTF-8 first": some tweets are valid in both and mean the other.
        """
        if marked_encoding(content) is not None:
            self._counts["marked"] += 1
        elif not content.isascii():
            self._counts["beyond_ascii"] += 1
            self._counts["also_utf8"] += _is_utf8(content)
        return decoded(content, self._encoding)

    def facts(self) -> dict[str, object]:
        """The counts; texts with a byte order mark are not among those beyond ASCII.

        `warnings` where nearly all are valid UTF-8, and nobody stated the encoding.
        """
        beyond, also_utf8 = self._counts["beyond_ascii"], self._counts["also_utf8"]
        facts: dict[str, object] = {
            "text_encoding": self._encoding,
            "texts_beyond_ascii": beyond,
            "texts_also_utf8": also_utf8,
        }
        if self._counts["marked"]:
            facts["texts_with_mark"] = self._counts["marked"]
        if not self._is_stated and beyond >= _FEW and also_utf8 >= _NEARLY_ALL * beyond:
            facts["warnings"] = [
                f"{also_utf8:,} of the {beyond:,} texts beyond ASCII are valid UTF-8, and were "
                f"read as {self._encoding.upper()}, the encoding of this set: if they look wrong, "
                "pack again with --encoding utf-8"
            ]
        return facts


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
