"""The server that `benchmarks.serve` compares with: one route, Pillow, one forward pass a request.

    python -m benchmarks.serve_naive EXPORT PORT

As such services are usually written: the route decodes with Pillow, resizes, pads the text to 128
tokens and calls the model; FastAPI runs it in its pool of threads.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path
from typing import Any


def create_app(path: Path) -> Any:
    import numpy as np
    import torch
    from fastapi import FastAPI
    from PIL import Image

    from mmsa.export import load_model, load_tokenizer_of, read_export
    from mmsa.export_target import resolve_export

    export = read_export(resolve_export(path).directory)
    model = load_model(export)
    tokenizer = load_tokenizer_of(export)
    assert tokenizer is not None
    assert export.preprocessing.image is not None
    side, length = export.preprocessing.image.image_size_px, 128
    app = FastAPI()

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    def predict(post: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(io.BytesIO(base64.b64decode(post["image"]))).convert("RGB")
        pixels = torch.from_numpy(np.array(image.resize((side, side)))).permute(2, 0, 1)[None]
        tokens = tokenizer.hugging_face(
            post["text"],
            padding="max_length",
            truncation=True,
            max_length=min(length, tokenizer.max_tokens),
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = model(tokens["input_ids"], tokens["attention_mask"], pixels)
        probabilities = logits.softmax(1)[0].tolist()
        best = probabilities.index(max(probabilities))
        return {"label": export.label_names[best], "probabilities": probabilities}

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        create_app(Path(sys.argv[1])), port=int(sys.argv[2]), log_level="warning", access_log=False
    )
