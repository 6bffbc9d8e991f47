"""The two programs in an ONNX directory, which need neither torch nor this package.

`prepare.py` turns texts and images into the inputs of the graph. It is put together from the lines
that this model needs, so that a reader sees all that happens to a text and an image. `example.py`
predicts with it. They need onnxruntime, numpy, tokenizers for texts and Pillow for images.

Texts are prepared exactly as in packing. Images nearly: packing's encoder (simplejpeg) takes the
fast transform of libjpeg-turbo, which Pillow does not offer, and torch resizes with other rounding.
A pixel of the model's input differs by about one level of 255 on average, and by up to twenty at an
edge. What this changes in the probabilities is measured at each export.
"""

from __future__ import annotations

from textwrap import indent

from mmsa.data.decoding.packed_form import MENTION_PATTERN, URL_PATTERN
from mmsa.export import Export
from mmsa.preprocessing import Preprocessing

EXAMPLE_NAME = "example.py"
PREPARE_NAME = "prepare.py"

EXAMPLE = '''\
"""Predict one post with the model in this folder: python example.py TEXT IMAGE"""

import sys

import numpy as np
import onnxruntime
from prepare import facts, here, inputs

session = onnxruntime.InferenceSession(here / "model.onnx")  # or model.int8.onnx


def predict(texts, files):
    """The probabilities (n, classes) of n posts; None for a text or image that is not there."""
    logits = session.run(None, inputs(texts, files))[0] / facts["temperature"]
    if logits.shape[1] == 1:  # one logit stands for two classes
        logits = np.hstack([np.zeros_like(logits), logits])
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


if __name__ == "__main__":
    text, file = (value or None for value in [*sys.argv[1:3], "", ""][:2])
    shares = predict([text], [file])[0].astype(float).round(4)  # float32 would print 17 digits
    print(dict(zip(facts["labels"], shares.tolist(), strict=True)))
'''

_NORMALIZE = {
    "urls": f're.sub(r"{URL_PATTERN}", "http", text, flags=re.IGNORECASE)',
    "mentions": f're.sub(r"{MENTION_PATTERN}", "@user", text)',
    "whitespace": '" ".join(text.split())',
}

_TEXT = '''\
def token_ids(text):
    """The ids of a text, with its special tokens, cut as in training."""
    text = text or ""
{normalize}    return tokenizer.encode(text.strip()).ids or facts["text"]["empty_ids"]


def text_inputs(texts):
    rows = [token_ids(text) for text in texts]
    longest = max(map(len, rows))
    ids = [row + [facts["text"]["pad_id"]] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {{"input_ids": np.array(ids), "attention_mask": np.array(mask)}}
'''

_IMAGE = '''\
def view(file):
    """What the model sees of an image (a path or an open file), uint8 (3, S, S)."""
    p = facts["image"]
{absent}    image = Image.open(file)
    (width, height), short = image.size, p["packed_short_side_px"]
{draft}    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
{pack}{store}    width, height = image.size
{view}    left, top = (width - columns) // 2, (height - rows) // 2
    image = image.crop((left, top, left + columns, top + rows))
    side, how = p["image_size_px"], Image.Resampling[p["interpolation"].upper()]
    return np.asarray(image.resize((side, side), how)).transpose(2, 0, 1)
'''
_BLACK = """\
    if file is None:  # the graph is told that there is none
        return np.zeros((3, p["image_size_px"], p["image_size_px"]), np.uint8)
"""
_DRAFT = '    image.draft("RGB", (2 * short, 2 * short))  # a large JPEG is decoded smaller\n'
_PLAIN = """\
    upright = image.getexif().get(0x0112, 1) == 1
    plain = upright and image.format == "JPEG" and image.mode in ("RGB", "L")
"""
_PACK = {
    "short_side": """\
    if (scale := short / min(width, height)) < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = image.resize(size, Image.Resampling.BICUBIC)
""",
    "square": """\
    cut = min(image.size)
    left, top = (image.width - cut) // 2, (image.height - cut) // 2
    image = image.crop((left, top, left + cut, top + cut))
    image = image.resize((short, short), Image.Resampling.BICUBIC)
""",
    "original": "",
}
_UPRIGHT = "    image = ImageOps.exif_transpose(image)\n"
_STORE = """\
    stored = io.BytesIO()  # as in the shards of the training
    image.save(stored, "JPEG", quality=p["packed_quality"], subsampling="4:2:0")
    image = Image.open(stored).convert("RGB")
"""
_STORE_OTHERS = "    if not plain:\n" + indent(_STORE, "    ")
_VIEW = {
    "crop": """\
    share = p["image_size_px"] / p["resize_px"]
    rows = columns = min(width, height, max(1, round(min(width, height) * share)))
""",
    "whole": "    rows, columns = height, width\n",
    "squeezes": """\
    share = min(1, p["image_size_px"] / p["resize_px"])
    rows, columns = max(1, round(height * share)), max(1, round(width * share))
""",
}


def prepare_source(export: Export) -> str:
    """`prepare.py` for the model of `export`."""
    read = export.preprocessing
    parts = [_head(read)]
    made = []
    if read.max_tokens is not None:
        done = [name for name in _NORMALIZE if name in read.packed_normalize]
        lines = "".join(f"    text = {_NORMALIZE[name]}\n" for name in done)
        parts.append(_TEXT.format(normalize=lines))
        made.append("**text_inputs(texts)")
    if read.image is not None:
        parts.append(_image(read, lacking="image" in export.may_lack))
        made.append('"images": np.stack([view(file) for file in files])')
    for name, given in (("text", "texts"), ("image", "files")):
        if name in export.may_lack:
            made.append(f'"{name}_present": np.array([one is not None for one in {given}])')
    parts.append(
        "def inputs(texts, files):\n"
        '    """The inputs of the graph for n posts; the model may read one of the two alone."""\n'
        "    return {\n" + "".join(f"        {line},\n" for line in made) + "    }\n"
    )
    return "\n\n".join(parts)


def _head(read: Preprocessing) -> str:
    """Imports, and what is loaded once."""
    plain = ["json", "pathlib"]
    plain += ["io"] if read.image else []
    plain += ["re"] if read.max_tokens and {"urls", "mentions"} & {*read.packed_normalize} else []
    lines = ['"""Texts and images -> the inputs of the ONNX graph."""', ""]
    lines += [*(f"import {name}" for name in sorted(plain)), "", "import numpy as np"]
    lines += ["from PIL import Image, ImageOps"] if read.image else []
    lines += ["from tokenizers import Tokenizer"] if read.max_tokens else []
    lines += ["", "here = pathlib.Path(__file__).parent"]
    lines += ['facts = json.loads((here / "preprocessing.json").read_text(encoding="utf-8"))']
    if read.max_tokens:
        lines += ['tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))']
    return "\n".join(lines) + "\n"


def _image(read: Preprocessing, *, lacking: bool) -> str:
    assert read.image is not None
    whole = "squeezes" if read.image.squeezes else "whole"
    original = read.packed_mode == "original"
    return _IMAGE.format(
        absent=_BLACK if lacking else "",
        draft=_PLAIN if original else _DRAFT,
        pack=_PACK[read.packed_mode],
        store=_UPRIGHT + (_STORE_OTHERS if original else _STORE),
        view=_VIEW["crop" if read.image_view == "crop" else whole],
    )
