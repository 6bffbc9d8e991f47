"""Where weights come from: directories, exports, state dicts; and what is said when they do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmsa.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from mmsa.errors import UserError
from mmsa.hub import from_hub, torchvision_state
from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
from mmsa.models.model import SentimentModel, build_model, self_contained
from mmsa.models.weights import read_state
from mmsa.preprocessing import ImagePreprocessing, Preprocessing
from tests.models.tiny import TEXT_SIZES, image_settings, text_settings


def _export(directory: Path, config: ModelConfig, model: SentimentModel) -> Path:
    """An export as training writes it, as far as encoders read it."""
    directory.mkdir()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, directory / "model.safetensors")
    own = self_contained(config, model)
    (directory / "config.yaml").write_text(f"model: {own.model_dump_json()}", encoding="utf-8")
    brought = None if model.image_encoder is None else model.image_encoder.preprocessing
    (directory / "preprocessing.json").write_text(
        Preprocessing(image=brought).to_json(), encoding="utf-8"
    )
    return directory


def _model(seed: int, **settings: object) -> tuple[ModelConfig, SentimentModel]:
    torch.manual_seed(seed)
    config = ModelConfig.model_validate(settings)
    return config, build_model(config, 3)


def _text(**settings: object) -> TextEncoderConfig:
    return TextEncoderConfig.model_validate(settings)


def _image(**settings: object) -> ImageEncoderConfig:
    return ImageEncoderConfig.model_validate(settings)


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(value, states[1][name]) for name, value in states[0].items()
    )


def test_each_encoder_takes_its_part_of_an_export(tmp_path: Path) -> None:
    config, model = _model(1, text_encoder=text_settings(), image_encoder=image_settings())
    export = _export(tmp_path / "best", config, model)
    text = build_text_encoder(_text(weights=str(export)))  # sizes are the export's own
    image = build_image_encoder(_image(name="hf:tiny", weights=str(export), train="frozen"))
    assert _same(text, model.text_encoder)
    assert _same(image, model.image_encoder)
    assert text.source == f"text encoder of export {export}"
    assert image.source == f"image encoder of export {export}"
    assert image.preprocessing == model.image_encoder.preprocessing
    assert not any(p.requires_grad for p in image.parameters())


def test_torchvision_takes_its_part_of_an_export(tmp_path: Path) -> None:
    settings = {"name": "resnet18", "weights": "none", "image_size_px": 96}
    config, model = _model(1, fusion={"name": "image_only"}, image_encoder=settings)
    export = _export(tmp_path / "best", config, model)
    image = build_image_encoder(_image(name="resnet18", weights=str(export)))
    assert _same(image, model.image_encoder)
    assert (image.preprocessing.image_size_px, image.preprocessing.resize_px) == (96, 110)
    larger = build_image_encoder(_image(name="resnet18", weights=str(export), image_size_px=192))
    assert larger.preprocessing.image_size_px == 192


def test_a_projection_is_taken_where_its_shape_agrees(tmp_path: Path) -> None:
    config, model = _model(
        1, fusion={"name": "text_only"}, text_encoder=text_settings(projection=4)
    )
    export = str(_export(tmp_path / "best", config, model))
    torch.manual_seed(2)
    same = build_text_encoder(_text(weights=export, projection=4))
    assert _same(same, model.text_encoder)
    assert same.source.endswith("(with its projection)")
    other = build_text_encoder(_text(weights=export, projection=5))
    assert _same(other.body, model.text_encoder.body)
    assert other.source.endswith("(projection fresh)")
    without = build_text_encoder(_text(weights=export))
    assert _same(without.body, model.text_encoder.body)


def test_an_export_without_the_part_or_of_another_size_is_refused(tmp_path: Path) -> None:
    config, model = _model(1, fusion={"name": "text_only"}, text_encoder=text_settings())
    export = str(_export(tmp_path / "best", config, model))
    with pytest.raises(UserError, match="reads no images; give the export of a run that does"):
        build_image_encoder(_image(name="resnet18", weights=export))
    wider = {**TEXT_SIZES, "hidden_size": 10}
    with pytest.raises(UserError, match=r"is \(50, 8\), the model's is \(50, 10\).*; and \d+ more"):
        build_text_encoder(_text(weights=export, config=wider))


def test_an_export_without_a_text_encoder_is_refused(tmp_path: Path) -> None:
    config, model = _model(1, fusion={"name": "image_only"}, image_encoder=image_settings())
    export = str(_export(tmp_path / "best", config, model))
    with pytest.raises(
        UserError, match=r"has no text_encoder \(it contains: fusion, image_encoder"
    ):
        build_text_encoder(_text(weights=export, config=TEXT_SIZES))


def test_a_self_contained_configuration_builds_the_same_model(tmp_path: Path) -> None:
    sizes = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "image_size": 32}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 16}
    config, model = _model(
        1, text_encoder=text_settings(), image_encoder=image_settings(config=sizes)
    )
    preprocessing = model.image_encoder.preprocessing.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    again = build_model(
        self_contained(config, model), 3, vocab_size=20, preprocessing=preprocessing
    )
    again.load_state_dict(model.state_dict(), strict=True)
    assert _same(again, model)
    assert again.image_encoder.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_hugging_face_directory_is_pretrained_weights(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel, ViTImageProcessor

    torch.manual_seed(1)
    text_model = AutoModel.from_config(AutoConfig.for_model(**TEXT_SIZES))
    text_model.half().save_pretrained(tmp_path / "text")
    for settings in ({"name": str(tmp_path / "text")}, {"weights": str(tmp_path / "text")}):
        encoder = build_text_encoder(_text(**settings))
        own = encoder.body.state_dict()
        assert own["embeddings.word_embeddings.weight"].dtype == torch.float32
        for name, value in own.items():
            assert torch.equal(value, text_model.state_dict()[name].float())
        assert encoder.source == f"pretrained from {tmp_path / 'text'}"

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
    vision = AutoConfig.for_model("vit", intermediate_size=16, **sizes)
    AutoModel.from_config(vision, add_pooling_layer=False).save_pretrained(tmp_path / "image")
    processor = ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
    )
    processor.save_pretrained(tmp_path / "image")
    image = build_image_encoder(_image(name=f"hf:{tmp_path / 'image'}"))
    assert image.preprocessing == ImagePreprocessing(
        image_size_px=32,
        resize_px=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        squeezes=True,
    )
    # Weights made without a pooler do not get a random one.
    assert not [name for name, _ in image.named_parameters() if "pooler" in name]
    assert image(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 8)


def test_incomplete_pretrained_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(**TEXT_SIZES)).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors .*encoder.layer.1.output.dense.weight"):
        build_text_encoder(_text(name=str(tmp_path)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_state_dict_of_torchvision_with_its_classifier(tmp_path: Path, suffix: str) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    state = resnet18(num_classes=7).state_dict()
    path = tmp_path / f"resnet{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    encoder = build_image_encoder(_image(name="resnet18", weights=str(path)))
    assert encoder.source == f"state dict {path}"
    own = encoder.body.state_dict()
    assert len(own) == len(state) - 2  # fc.weight, fc.bias
    assert all(torch.equal(value, state[name]) for name, value in own.items())
    with pytest.raises(
        UserError, match=r"do not fit the encoder .* in \d+ tensor\(s\) of \d+: miss"
    ):
        build_image_encoder(_image(name="resnet34", weights=str(path)))


class _Malicious:
    """Unpickling it would create a file: stands for any code in a pickle."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_no_code_runs_from_a_state_dict(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"fc.weight": _Malicious(touched)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="contains only tensors"):
        read_state(tmp_path / "bad.pth")
    assert not touched.exists()


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(path)
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "nested.pth")
    with pytest.raises(UserError, match="is not a state dict"):
        read_state(tmp_path / "nested.pth")


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_paths_without_weights_are_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    path = str(tmp_path / place)
    for settings in (_image(name="resnet18", weights=path), _image(name="hf:x", weights=path)):
        with pytest.raises(UserError, match="found neither an export .*; give one, or pretrained"):
            build_image_encoder(settings)
    with pytest.raises(UserError, match="found neither an export .*; give one, or pretrained"):
        build_text_encoder(_text(weights=path))


def test_sizes_with_pretrained_weights_are_refused() -> None:
    with pytest.raises(UserError, match="Take one of the two out"):
        build_text_encoder(_text(config=TEXT_SIZES))
    with pytest.raises(UserError, match="Take one of the two out"):
        build_image_encoder(_image(name="hf:x", config={"model_type": "resnet"}))


def test_a_directory_that_does_not_exist_is_not_looked_for_on_the_hub() -> None:
    from transformers import AutoConfig

    with pytest.raises(UserError, match="is not a directory"):
        from_hub(AutoConfig.from_pretrained, "./no/such/directory")


@pytest.fixture
def _unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses connections, and an empty cache: a node without a network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.usefixtures("_unreachable_hub")
def test_weights_that_cannot_be_fetched_are_all_named(tmp_path: Path) -> None:
    config = ModelConfig.model_validate(
        {
            "text_encoder": {"name": "no-such-owner/no-such-text-model"},
            "image_encoder": {"name": "hf:no-such-owner/no-such-image-model"},
        }
    )
    with pytest.raises(UserError) as raised:
        build_model(config, 3)
    message = str(raised.value)
    assert "the model cannot be built: 2 problems" in message
    assert f"'no-such-owner/no-such-text-model' is not on this machine (looked in {tmp_path})" in (
        message
    )
    assert message.count("prefetch") == 1
    assert (
        "python -m launch prefetch model.text_encoder.name=no-such-owner/no-such-text-model "
        "model.image_encoder.name=hf:no-such-owner/no-such-image-model "
        "model.fusion.name=concat - or"
    ) in message


def test_a_missing_checkpoint_of_torchvision_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))

    class Weights:
        url = "http://127.0.0.1:9/resnet18-f37072fd.pth"

    with pytest.raises(UserError) as raised:
        torchvision_state(Weights())
    message = str(raised.value)
    assert str(tmp_path / "checkpoints" / "resnet18-f37072fd.pth") in message
    assert "http://127.0.0.1:9/resnet18-f37072fd.pth" in message
