"""The training loops with which `benchmarks/step.py` compares ours."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import real_run

MICRO_BATCH = 16
PADDED_TO = 128


class Samples:
    """The packed training samples as a torch Dataset: decoded and tokenized one by one."""

    def __init__(self, shards: str, tokenizer: str, side: int, *, padded: bool) -> None:
        from torchvision import transforms

        from mmsa.data.manifest import load_manifest
        from mmsa.data.reader import SplitReader
        from mmsa.data.text import load_tokenizer, word_tokenizer
        from mmsa.labels import class_map
        from mmsa.preprocessing import IMAGENET_MEAN, IMAGENET_STD

        manifest = load_manifest(shards)
        self.reader = SplitReader(shards, manifest, "train", class_map(manifest.classes, None))
        self.places = self.reader.all_records()[0].tolist()
        if tokenizer.startswith("words:"):
            texts = (self.reader.read(*place).text for place in self.places[:2000])
            self.tokenizer = word_tokenizer(texts, int(tokenizer[6:]), PADDED_TO)
        else:
            self.tokenizer = load_tokenizer(tokenizer, PADDED_TO)
        self.padded = padded
        crop: list[Any] = [transforms.Resize((side, side))]
        if not padded:
            crop = [transforms.RandomCrop(side, pad_if_needed=True)]
        self.transform = transforms.Compose(
            [
                *[*crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()],
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> tuple[Any, Any, Any, int]:
        import io

        import torch
        from PIL import Image

        sample = self.reader.read(*self.places[number])
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        ids, mask = (each[0] for each in self.tokenizer([sample.text]))
        if self.padded:
            missing = PADDED_TO - len(ids)
            ids, mask = (torch.nn.functional.pad(each, (0, missing)) for each in (ids, mask))
        return ids, mask, self.transform(image), sample.label

    @staticmethod
    def collated(samples: list[Any]) -> tuple[Any, Any, Any, Any]:
        """A batch, padded to its longest text."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        ids, masks, images, labels = zip(*samples, strict=True)
        return (
            pad_sequence(list(ids), batch_first=True),
            pad_sequence(list(masks), batch_first=True),
            torch.stack(images),
            torch.tensor(labels),
        )


def peer(arm: str, options: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Seconds and shapes of `steps` optimizer steps of another library, after a warm-up step."""
    import torch
    from torch.utils.data import DataLoader

    side: Any = real_run.SIZES[options.size]["image_size_px"]
    samples = Samples(options.shards, options.tokenizer, side, padded=arm == "seed")
    torch.manual_seed(0)
    model = real_run.plain_model(
        options.size, samples.tokenizer.vocab_size, options.text_weights, options.image_weights
    )
    loader: Any = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=options.micro,
        shuffle=True,
        drop_last=True,
        collate_fn=Samples.collated,
    )
    accumulation = options.batch // (options.micro * options.processes)
    run = {"seed": seed_steps, "accelerate": accelerate_steps, "lightning": lightning_steps}[arm]
    return run(model, loader, accumulation, steps, options.precision)


def seed_steps(
    model: Any, loader: Any, accumulation: int, steps: int, _precision: str
) -> dict[str, Any]:
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    seen: list[real_run.Shape] = []

    def step(micro_steps: int) -> None:
        for _ in range(micro_steps):
            batch = [each.to(device) for each in next(batches)]
            seen.append((len(batch[0]), *batch[0].shape))
            loss = torch.nn.functional.cross_entropy(model(*batch[:3]), batch[3])
            (loss / micro_steps).backward()
        optimizer.step()
        optimizer.zero_grad()

    batches = (batch for _ in range(1000) for batch in loader)
    step(1)  # warms up, and gets memory from the system
    seen.clear()
    begin = real_run.clock()
    for _ in range(steps):
        step(accumulation)
    return {"seconds": real_run.clock() - begin, "shapes": seen}


def accelerate_steps(
    model: Any, loader: Any, accumulation: int, steps: int, precision: str
) -> dict[str, Any]:
    """Like `examples/by_feature/gradient_accumulation.py` of Accelerate."""
    import torch
    from accelerate import Accelerator

    on_cpu = not torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=precision, gradient_accumulation_steps=accumulation
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    model.train()
    seen: list[real_run.Shape] = []
    begin, done = 0.0, -1
    batches = (batch for _ in range(1000) for batch in loader)
    while done < steps:
        if done == 0 and not begin:
            seen.clear()
            begin = real_run.clock()
        for _ in range(accumulation):
            ids, mask, images, labels = next(batches)
            seen.append((len(ids), *ids.shape))
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(ids, mask, images), labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        done += 1
    return {"seconds": real_run.clock() - begin, "shapes": seen}


def lightning_steps(
    model: Any, loader: Any, accumulation: int, steps: int, precision: str
) -> dict[str, Any]:
    import lightning
    import torch

    seen: list[real_run.Shape] = []
    times: list[float] = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _: int) -> Any:
            seen.append((len(batch[0]), *batch[0].shape))
            return torch.nn.functional.cross_entropy(self.model(*batch[:3]), batch[3])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=2e-5)

        def on_train_batch_end(self, *_: Any) -> None:
            times.append(real_run.clock())

    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        accumulate_grad_batches=accumulation,
        max_steps=steps + 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    seconds = times[(steps + 1) * accumulation - 1] - times[accumulation - 1]
    return {"seconds": seconds, "shapes": seen[accumulation:]}
