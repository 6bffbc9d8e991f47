"""timm: input, stages, weights of files and directories, what an export says, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mmsa.config import ImageEncoderConfig, ModelConfig
from mmsa.errors import UserError
from mmsa.hub import NotOnThisMachine
from mmsa.models import timm_encoders
from mmsa.models.build_encoders import build_image_encoder, encoder_problems
from mmsa.models.encoder_probes import probe_image_encoder
from mmsa.models.encoders import ImageEncoder
from mmsa.models.hf_image_processors import imitate
from mmsa.models.model import build_model, self_contained
from mmsa.models.timm_cards import preprocessing_of
from mmsa.models.timm_sources import source_of
from mmsa.models.weights import load_strictly
from tests.models.tiny import text_settings

# Real architectures, few parameters.
TINY: dict[str, dict[str, Any]] = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 3, "num_heads": 2},
}
LITE = "tf_efficientnet_lite0"  # 3.4 million parameters at 32 px


def _timm(name: str, **more: Any) -> ImageEncoder:
    torch.manual_seed(0)
    settings = {"name": f"timm:{name}", "weights": "none", "image_size_px": 32, **more}
    if name in TINY:
        settings.setdefault("config", TINY[name])
    return build_image_encoder(ImageEncoderConfig.model_validate(settings))


def _images(side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)


# The number of stages, and how the parameters of the last one begin. Of timm's own `feature_info`:
# four scales of a ResNet and a ConvNeXt, three blocks of this ViT, five scales of an EfficientNet.
@pytest.mark.parametrize(
    ("name", "stages", "last"),
    [
        ("resnet18", 4, {"layer4"}),
        ("convnext_atto", 4, {"stages.3", "head.norm"}),
        ("vit_tiny_patch16_224", 3, {"blocks.2", "norm"}),
        (LITE, 5, {"blocks.5", "blocks.6", "conv_head", "bn2"}),
    ],
)
def test_the_last_stage_alone_is_trained(name: str, stages: int, last: set[str]) -> None:
    encoder = _timm(name, train="last_n", last_n=1).train()
    trained = {
        key.removeprefix("body.") for key, p in encoder.named_parameters() if p.requires_grad
    }
    assert all(key.startswith(tuple(f"{one}." for one in last)) for key in trained)
    assert all(any(key.startswith(f"{one}.") for key in trained) for one in last)
    encoder(_images()).sum().backward()
    assert {key for key, p in encoder.body.named_parameters() if p.grad is not None} == trained
    with pytest.raises(UserError, match=f"give 1 to {stages}, or use"):
        _timm(name, train="last_n", last_n=stages + 1)


@pytest.mark.parametrize("name", [*TINY, LITE])
def test_an_export_says_what_builds_it_again(name: str) -> None:
    settings = {"name": f"timm:{name}", "weights": "none", "image_size_px": 32}
    settings["config"] = TINY.get(name)
    config = ModelConfig.model_validate(
        {"image_encoder": settings, "fusion": {"name": "image_only"}}
    )
    torch.manual_seed(0)
    model = build_model(config, 3).eval()
    assert model.image_encoder is not None
    probe_image_encoder(model.image_encoder, name)
    described = json.loads(self_contained(config, model).model_dump_json())
    assert described["image_encoder"]["config"]["timm_version"]
    again = build_model(
        ModelConfig.model_validate(described), 3, preprocessing=model.image_encoder.preprocessing
    ).eval()
    load_strictly(again, model.state_dict(), where="the same")
    assert torch.equal(again(images=_images()), model(images=_images()))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", LITE])
def test_gradient_checkpointing_changes_no_gradient_and_counts_a_batch_once(name: str) -> None:
    found = []
    for recomputed in (False, True):
        encoder = _timm(name, gradient_checkpointing=recomputed).train()
        torch.manual_seed(3)
        encoder(_images()).square().sum().backward()
        gradients = {key: p.grad for key, p in encoder.named_parameters() if p.requires_grad}
        buffers = {key: value.clone() for key, value in encoder.named_buffers()}
        found.append(gradients | buffers)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


class _Transform:
    """timm's own evaluation transform, called as a Hugging Face image processor is."""

    def __init__(self, card: dict[str, Any]) -> None:
        from timm.data import create_transform, resolve_data_config

        self.stated = resolve_data_config(pretrained_cfg=card)
        self.transform = create_transform(**self.stated, is_training=False)

    def __call__(self, image: Any, return_tensors: str) -> dict[str, Tensor]:
        return {"pixel_values": self.transform(image)[None]}

    def to_dict(self) -> dict[str, Any]:
        resample = {"bilinear": 2, "bicubic": 3}[self.stated["interpolation"]]
        return {
            "image_mean": list(self.stated["mean"]),
            "image_std": list(self.stated["std"]),
            "resample": resample,
        }


# Crops of 0.875, 1 and 0.95 of the image; squeezed; three pairs of mean and deviation.
@pytest.mark.parametrize(
    "name",
    [
        "tf_efficientnet_lite0.in1k",
        "vit_base_patch16_siglip_224.webli",
        "resnet18.a1_in1k",
        "vit_base_patch32_clip_224.openai",
        "inception_v3.tf_in1k",
    ],
)
def test_our_view_is_that_of_the_transform_of_timm(name: str) -> None:
    card = dict(source_of(name).card)
    ours, measured = preprocessing_of(card, name), imitate(_Transform(card), name)
    assert abs(ours.resize_px - measured.resize_px) <= 2  # measured on a test image
    assert ours.model_copy(update={"resize_px": 0}) == measured.model_copy(update={"resize_px": 0})


def _saved(folder: Path, *, classes: int = 7) -> tuple[dict[str, Tensor], Path]:
    import timm

    torch.manual_seed(5)
    model = timm.create_model("resnet18", num_classes=classes, **TINY["resnet18"])
    save_file(model.state_dict(), folder / "model.safetensors")
    return model.state_dict(), folder / "model.safetensors"


@pytest.mark.parametrize("form", ["safetensors", "pth", "checkpoint", "without a classifier"])
def test_weights_of_a_file_as_timm_writes_it(tmp_path: Path, form: str) -> None:
    state, path = _saved(tmp_path)
    if form == "pth":
        path = tmp_path / "resnet18.pth"
        torch.save(state, path)
    elif form == "checkpoint":  # of its training script: with averaged weights, which it prefers
        path = tmp_path / "model_best.pth.tar"
        half = {
            key: value / 2 if value.is_floating_point() else value for key, value in state.items()
        }
        torch.save(
            {"epoch": 3, "arch": "resnet18", "state_dict": half, "state_dict_ema": state}, path
        )
    elif form == "without a classifier":
        save_file({k: v for k, v in state.items() if not k.startswith("fc.")}, path)
    encoder = _timm("resnet18", weights=str(path))
    assert encoder.source == f"state dict {path}"
    own = encoder.body.state_dict()
    assert len(own) == len(state) - 2
    assert all(torch.equal(value, state[key]) for key, value in own.items())


def test_a_directory_brings_its_own_input(tmp_path: Path) -> None:
    state, _ = _saved(tmp_path)
    content = {"architecture": "resnet18", "num_classes": 7, "model_args": TINY["resnet18"]}
    content["pretrained_cfg"] = {
        "mean": [0.4, 0.4, 0.4],
        "input_size": [3, 64, 64],
        "crop_pct": 0.8,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    by_name = _timm(str(tmp_path), weights="pretrained", image_size_px=None)
    by_path = _timm("resnet18", weights=str(tmp_path), image_size_px=None)
    for encoder in (by_name, by_path):
        brought = encoder.preprocessing
        assert (brought.image_size_px, brought.resize_px, brought.mean[0]) == (64, 80, 0.4)
        assert torch.equal(encoder.body.state_dict()["conv1.weight"], state["conv1.weight"])
    assert by_name.architecture == {
        "architecture": "resnet18",
        "timm_version": by_path.architecture["timm_version"],
        **TINY["resnet18"],
    }
    with pytest.raises(UserError, match="are of timm's resnet18, and .* is timm:resnet34; use"):
        _timm("resnet34", weights=str(tmp_path))


def test_position_embeddings_of_another_input_size_are_resized_as_timm_does(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(5)
    sizes = TINY["vit_tiny_patch16_224"]
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, **sizes)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    encoder = _timm(
        "vit_tiny_patch16_224", weights=str(tmp_path / "model.safetensors"), image_size_px=96
    )
    own = encoder.body.state_dict()
    assert own["pos_embed"].shape == (1, 1 + 36, 24)
    assert torch.equal(own["pos_embed"][:, 0], model.pos_embed[:, 0])  # of the class token
    assert torch.equal(own["blocks.2.mlp.fc2.weight"], model.blocks[2].mlp.fc2.weight)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "timm:resnet19"}, r"timm .* has no model resnet19; did you mean resnet18"),
        ({"name": "timm:resnet18.a9_in1k"}, r"did you mean resnet18.a3_in1k or .*resnet18.a1_in1k"),
        ({"name": "timm:/no/such/place"}, r"has no model /no/such/place"),
        (
            {"name": "timm:resnet18", "config": {"layer": [1]}},
            r"does not fit timm's resnet18: TypeError: .*'layer'. Expected arguments of its class",
        ),
        (
            {"name": "timm:resnet18", "config": {"num_classes": 3}},
            "num_classes is not a setting of an encoder: the fusion head has the classes",
        ),
        (
            {"name": "timm:levit_128s", "image_size_px": 40},
            "timm's levit_128s does not take images of 40 px: ",
        ),
        ({"name": "timm:test_vit", "projection": "own"}, "has no projection of its own"),
        ({"name": "timm:vit_base_patch16_sapiens2x"}, "did you mean vit_base_patch16_sapiens2"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_image_encoder(ImageEncoderConfig.model_validate({"weights": "none", **settings}))


def test_weights_of_another_architecture_are_counted(tmp_path: Path) -> None:
    _, path = _saved(tmp_path)
    with pytest.raises(UserError) as raised:
        _timm("convnext_atto", weights=str(path))
    message = str(raised.value)
    assert f"the weights {path} do not fit the encoder of this configuration" in message
    assert "missing stem.0.weight; " in message
    assert "in 134 tensor(s) of 134: " in message  # 54 missing, 80 unexpected
    assert "130 more" in message


def test_wrong_settings_are_found_before_anything_is_built() -> None:
    raw = {"model": {"image_encoder": {"name": "timm:resnet18", "config": {"img_size": 64}}}}
    assert encoder_problems(raw) == [
        "model.image_encoder.config: img_size is not a setting of an encoder: use "
        "model.image_encoder.image_size_px"
    ]


@pytest.mark.parametrize(
    ("name", "asked", "command"),
    [
        ("resnet18.a1_in1k", "'timm/resnet18.a1_in1k'", "create_model('resnet18.a1_in1k'"),
        ("some/model", "'some/model'", "create_model('hf-hub:some/model'"),
    ],
)
def test_what_is_not_on_this_machine_is_named_with_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asked: str, command: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotOnThisMachine) as raised:
        _timm(name, weights="pretrained", config=None)
    message = str(raised.value)
    assert f"{asked} is not on this machine (looked in {tmp_path})" in message
    assert f'python -c "import timm; timm.{command}, pretrained=True)"' in message


@pytest.mark.parametrize("name", ["some/model--3", "hf-hub:some/model.git"])
def test_a_name_that_no_hub_can_have(name: str) -> None:
    with pytest.raises(UserError, match=r"some/model\S+ is not a directory, and no repository"):
        _timm(name, weights="pretrained", config=None)


def test_pretrained_weights_come_from_the_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--timm--resnet18.a1_in1k"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    state, _ = _saved(repository / "snapshots" / "abc", classes=1000)
    encoder = _timm("resnet18", weights="pretrained", config=TINY["resnet18"])
    assert encoder.source == "pretrained, timm timm/resnet18.a1_in1k"
    assert torch.equal(encoder.body.state_dict()["conv1.weight"], state["conv1.weight"])


def test_synchronised_statistics_keep_the_activation_of_a_norm() -> None:
    from mmsa.config import load_config
    from mmsa.training.model_for_engine import adapt_to_launch

    settings = {"name": "timm:test_efficientnet", "weights": "none", "image_size_px": 32}
    section = {"image_encoder": settings, "fusion": {"name": "image_only"}}
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate(section), 3).eval()
    before = model(images=_images())
    config = load_config(None, ["model.image_encoder.batch_norm=sync"])
    adapt_to_launch(model, config, deepspeed=False)
    kinds = {type(module).__name__ for module in model.modules()}
    assert "SyncBatchNormAct" in kinds
    assert "BatchNormAct2d" not in kinds
    assert torch.equal(model(images=_images()), before)


def test_synchronised_norms_are_trained_and_frozen_like_those_in_their_place() -> None:
    """EfficientNet's last part has a BatchNorm that is in no module of its own (`bn2`)."""
    from mmsa.config import load_config
    from mmsa.training.model_for_engine import adapt_to_launch

    settings = {"name": "timm:test_efficientnet", "weights": "none", "image_size_px": 32}
    section = {
        "image_encoder": {**settings, "train": "last_n", "last_n": 1, "batch_norm": "sync"},
        "fusion": {"name": "image_only"},
    }
    model = build_model(ModelConfig.model_validate(section), 3).train()

    def modes() -> dict[str, bool]:
        return {n: m.training for n, m in model.named_modules() if isinstance(m, _BatchNorm)}

    before = modes()
    assert before["image_encoder.body.bn2"]
    assert not before["image_encoder.body.bn1"]
    config = load_config(None, ["model.image_encoder.batch_norm=sync"])
    adapt_to_launch(model, config, deepspeed=False)
    assert modes() == before
    model.eval()
    assert not any(modes().values())
    model.train()
    assert modes() == before
    assert model.image_encoder is not None
    assert {m for layer in model.image_encoder.layers for m in layer} <= set(model.modules())


@pytest.mark.parametrize(
    ("name", "positions"),
    [("resnet18", 1), ("convnext_atto", 1), ("vit_tiny_patch16_224", 5), (LITE, 1)],
)
def test_heads_that_take_sequences_and_layer_rates(name: str, positions: int) -> None:
    """One row per position (a ViT of 32 px has four patches and a class token)."""
    config = ModelConfig.model_validate(
        {
            "text_encoder": text_settings(),
            "image_encoder": {
                **{"name": f"timm:{name}", "weights": "none", "image_size_px": 32},
                **({"config": TINY[name]} if name in TINY else {}),
            },
            "fusion": {"name": "bottleneck", "width": 8},
        }
    )
    model = build_model(config, 3).eval()
    assert model.image_encoder is not None
    rows, mask = model.image_encoder(_images())
    assert rows.shape == (2, positions, model.image_encoder.width)
    assert mask.all()
    ids = torch.ones(2, 4, dtype=torch.long)
    model(ids, ids, _images()).sum().backward()
    assert len(model.image_encoder.layers) > 1
    held = {
        id(p) for layer in model.image_encoder.layers for one in layer for p in one.parameters()
    }
    with_gradient = [p for p in model.image_encoder.body.parameters() if p.grad is not None]
    assert held & {id(p) for p in with_gradient}


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", LITE])
def test_drop_path_of_timm(name: str) -> None:
    encoder = _timm(name, drop_path=0.3)
    rates = [one.drop_prob for one in encoder.body.modules() if type(one).__name__ == "DropPath"]
    assert rates
    assert 0.2 < max(rates) < 0.31
    assert encoder.architecture is not None
    assert encoder.architecture["drop_path_rate"] == 0.3
    with pytest.raises(UserError, match=r"drop_path=0.3, but vgg11 has no stochastic depth"):
        _timm("vgg11", drop_path=0.3)


def test_an_image_for_which_memory_is_short_is_no_wrong_size() -> None:
    class Greedy(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.empty(1 << 50)

    with pytest.raises(UserError, match="not enough memory for one image of 64 px in"):
        timm_encoders._width(Greedy(), "greedy", 64)
