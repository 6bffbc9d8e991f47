"""How large a text or an image may be. Without imports: command lines show these numbers."""

from __future__ import annotations

# Of one text, in Unicode code points. Posts have at most 25,000 (X) or 63,206 (Facebook); a longer
# text is a damaged or a wrong file, and tokenizing 100 MB takes minutes and 10 GB.
MAX_CHARACTERS = 65_536

# In pixels. Decoding and encoding this many takes about 0.4 GB of memory. Posted images have at
# most 16 million (X reduces to 4096 x 4096), a phone's camera makes 12 to 50 million.
MAX_PIXELS = 64_000_000
# On opening, Pillow refuses more than twice its own limit, whatever is allowed here.
LARGEST_MAX_PIXELS = 2 * 89_478_485
# Of an image in a shard, 8192 x 8192: a damaged header may demand 12 GiB.
MOST_PIXELS_IN_SHARDS = 1 << 26
