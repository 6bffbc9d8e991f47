"""One sample as the reader gives it to the stream and to reports."""

from __future__ import annotations

from typing import Any, NamedTuple

from mmsa.data.members import Content, object_in
from mmsa.errors import ShardDamage


class RawSample(NamedTuple):
    """One sample as stored in its tar. `label` is the model's integer label.

    `image` is a view into the bytes that were read: a copy would double the loader's writes to
    memory. A sample without an image or a text has empty bytes or an empty text in its place.
    """

    key: str
    shard: str
    image: Content
    text: str
    json: bytes
    label: int
    key_hash: int
    has_text: bool = True
    has_image: bool = True

    @property
    def meta(self) -> dict[str, Any]:
        """The object in `json`; raises `ShardDamage` if it is not JSON.

        Parsed at each call: it costs as much as reading the tar headers, and training seldom
        needs it.
        """
        try:
            return object_in(self.json)
        except ValueError as error:
            raise ShardDamage(
                f"the json of {self.key} in {self.shard} cannot be read ({error}). "
                "Pack the data again, or index its tars again",
                shard=self.shard,
                key=self.key,
            ) from None
