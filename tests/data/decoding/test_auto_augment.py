"""torchvision's policies: a pure function of (seed, epoch, sample), whoever makes the view."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from packed import PREPROCESSING
from streaming import assert_equal, batches_of, requests
from torch import Tensor

from mmsa.config import Config
from mmsa.data.decoding.auto_augment import AutoAugment, auto_augmented
from mmsa.data.index_file import key_hash
from mmsa.data.read_and_decode import Augmentation
from mmsa.data.reader import SplitReader
from mmsa.data.stream import Loader
from mmsa.data.text import TextTokenizer
from mmsa.training.setup import _augmentation

POLICIES: list[Literal["rand_augment", "trivial_augment"]] = ["rand_augment", "trivial_augment"]


@pytest.fixture
def view() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (16, 16, 3), generator=generator, dtype=torch.uint8).permute(
        2, 0, 1
    )


def augmented(view: Tensor, settings: AutoAugment, **drawn_by: int) -> Tensor:
    by = {"seed": 1, "epoch": 2, "sample": 3, **drawn_by}
    return auto_augmented(view, settings, **by, fill=(0.5, 1.7, -2.0))


@pytest.mark.parametrize("policy", POLICIES)
def test_a_view_depends_on_seed_epoch_and_sample_alone(
    view: Tensor, policy: Literal["rand_augment", "trivial_augment"]
) -> None:
    settings = AutoAugment(policy)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = augmented(view, settings)
    assert torch.equal(torch.get_rng_state(), before)  # dropout's draws do not change
    torch.rand(5)
    assert torch.equal(augmented(view, settings), first)
    assert (first.dtype, first.shape) == (torch.uint8, (3, 16, 16))
    for name in ("seed", "epoch", "sample"):
        others = [augmented(view, settings, **{name: value}) for value in range(10, 20)]
        assert sum(not torch.equal(one, first) for one in others) >= 8


def test_what_is_left_empty_has_the_given_colour() -> None:
    """A rotation or a shift of a white image shows only white and the colour."""
    white = torch.full((3, 16, 16), 255, dtype=torch.uint8)
    strong = AutoAugment("rand_augment", num_operations=1, magnitude=30)
    pixels = torch.cat(
        [augmented(white, strong, sample=sample).flatten(1).T for sample in range(40)]
    )
    colours = {tuple(pixel) for pixel in pixels.tolist()}
    assert (128, 255, 0) in colours


@pytest.mark.parametrize("policy", POLICIES)
def test_workers_and_a_resumed_run_make_the_same_batches(
    reader: SplitReader,
    tokenizer: TextTokenizer,
    policy: Literal["rand_augment", "trivial_augment"],
) -> None:
    settings = Augmentation(3, 0.6, 0.5, True, AutoAugment(policy))

    def batches(start_step: int = 0, workers: int = 0) -> list[dict[str, Any]]:
        source = requests(reader, start_step=start_step)
        return list(batches_of(source, tokenizer, workers=workers, augmentation=settings))

    whole = batches()
    assert_equal(batches(workers=2), whole)
    assert_equal(batches(start_step=4), whole[16:])
    plain = list(batches_of(requests(reader), tokenizer))
    assert not torch.equal(plain[0]["images"], whole[0]["images"])


def test_without_crop_and_flip_the_policy_sees_the_evaluations_view(reader: SplitReader) -> None:
    auto = AutoAugment("trivial_augment")
    only = Augmentation(3, 0.6, 0.5, False, auto)
    batch = next(Loader(requests(reader), PREPROCESSING, None, 0, only))
    plain = next(Loader(requests(reader), PREPROCESSING, None, 0))
    assert PREPROCESSING.image is not None
    for row, key in enumerate(batch["keys"]):
        expected = auto_augmented(
            plain["images"][row],
            auto,
            seed=3,
            epoch=0,
            sample=key_hash(key),
            fill=PREPROCESSING.image.mean,
        )
        assert torch.equal(batch["images"][row], expected)


def test_settings_reach_the_loader() -> None:
    def of(**data: object) -> Augmentation | None:
        return _augmentation(Config.model_validate({"run": {"seed": 5}, "data": data}))

    assert of() == Augmentation(5, 1.0, 0.5)
    assert of(augment=False) is None
    assert of(augment=False, auto_augment="trivial_augment") == Augmentation(
        5, 1.0, 0.5, False, AutoAugment("trivial_augment")
    )
    assert of(
        auto_augment="rand_augment", auto_augment_operations=3, auto_augment_magnitude=5
    ) == Augmentation(5, 1.0, 0.5, True, AutoAugment("rand_augment", 3, 5))
