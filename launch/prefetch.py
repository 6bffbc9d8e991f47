"""`python -m launch prefetch CONFIG`: weights and tokenizers, before a job needs them.

On a login node, which has a network: builds the encoders of a configuration as a run does, so that
every file that a run asks for lies in the cache; jobs have HF_HUB_OFFLINE=1 and look there alone.
The cache is that of the site (`cache` in launch/site.yaml) or --cache; without either it is the
user's own (HF_HOME, TORCH_HOME), which nodes must see under the same path.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsa.errors import UserError, one_or_many
from mmsa.extensions import as_options, take_imports

if TYPE_CHECKING:
    from mmsa.config import Config, ImageEncoderConfig, TextEncoderConfig

Part = tuple[str, str, Callable[[], object]]


def add_parser(commands: Any) -> None:
    prefetch = commands.add_parser(
        "prefetch",
        help="fetch weights and tokenizers on the login node",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    prefetch.add_argument("config", metavar="CONFIG")
    prefetch.add_argument("overrides", nargs="*", metavar="section.key=value")
    prefetch.add_argument("--cache", metavar="DIR", help="shared by login and compute nodes")
    prefetch.add_argument("--offline", action="store_true", help="look only, fetch nothing")
    prefetch.add_argument("--site", type=Path, metavar="FILE", help="instead of launch/site.yaml")
    prefetch.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    from launch.script import caches
    from launch.site import load_site
    from mmsa.config import load_config

    config = load_config(arguments.config, [*arguments.overrides, *take_imports(arguments.rest)[1]])
    cache = arguments.cache or load_site(arguments.site).cache
    # Before the first import of either library: they read these once.
    if cache:
        os.environ.update(caches(str(Path(cache).expanduser().resolve())))
    if arguments.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants
    from torch import hub

    print(f"cache of Hugging Face: {constants.HF_HUB_CACHE}")
    print(f"cache of torchvision:  {hub.get_dir()}/checkpoints")
    missing = []
    for name, source, fetch in parts_of(config):
        problem = _missing(fetch)
        print(f"{'MISSING' if problem else 'there':<8} {name}: {source}")
        if problem:
            missing.append(f"{name}: {problem}")
    if missing:
        raise UserError(one_or_many(missing, where=f"not everything of {arguments.config} is here"))
    if arguments.cache:
        print(f"for jobs: write `cache: {cache}` into launch/site.yaml; `submit` hands it to them")


def missing_for_jobs(config: Config, words: Sequence[str], cache: str | None) -> list[str]:
    """What jobs, which have no network, would not find in `cache`; `words` are CONFIG OVERRIDES.

    Asked of `prefetch --offline` in a process of its own: the libraries read once where their
    caches are. Looked for where `config` names pretrained weights.
    """
    encoders = (config.model.text_encoder, config.model.image_encoder)
    if all(encoder.weights != "pretrained" for encoder in encoders):
        return []
    imports, others = take_imports(words)
    command = [sys.executable, "-m", "launch", *as_options(imports), "prefetch", *others]
    command += ["--offline", *(["--cache", cache] if cache else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if line.startswith("MISSING")]


def _missing(fetch: Callable[[], object]) -> str:
    try:
        fetch()
    except UserError as error:
        return str(error)
    return ""


def parts_of(config: Config) -> list[Part]:
    """(what, where from, what a run does to get it) of each thing that a run would ask for."""
    from mmsa.data.text import load_tokenizer
    from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
    from mmsa.models.fusion import fusion_class
    from mmsa.training.setup import tokenizer_name

    head = fusion_class(config.model.fusion.name)
    text, image = config.model.text_encoder, config.model.image_encoder
    parts: list[Part] = []
    if head.uses_text:
        name = tokenizer_name(text)
        if not name.startswith("words:"):  # made from the shards
            parts.append(("tokenizer", name, lambda: load_tokenizer(name, config.data.max_tokens)))
        parts.append(("text encoder", _source(text), lambda: build_text_encoder(text)))
    if head.uses_image:
        parts.append(("image encoder", _source(image), lambda: build_image_encoder(image)))
    return parts


def _source(encoder: TextEncoderConfig | ImageEncoderConfig) -> str:
    if encoder.weights == "none":
        return f"{encoder.name}, fresh weights"
    return encoder.name if encoder.weights == "pretrained" else encoder.weights
