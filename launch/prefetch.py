"""`python -m launch prefetch CONFIG`: download weights and tokenizers before a job needs them.

Run it on a login node with network access. It builds the encoders of a configuration as a run does,
so that every file the run needs is in the cache. Jobs run with HF_HUB_OFFLINE=1 and use only the
cache: that of --cache or of the site (`cache` in launch/site.yaml), otherwise the user's own
(HF_HOME, TORCH_HOME), which nodes must see under the same path.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmsa.errors import UserError, one_or_many
from mmsa.extensions import as_options, take_imports
from mmsa.hub import NotOnThisMachine

if TYPE_CHECKING:
    from mmsa.config import Config, ImageEncoderConfig, TextEncoderConfig

Part = tuple[str, str, Callable[[], object]]  # what, its source, how a run gets it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="default: all defaults")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument(
        "--cache", metavar="DIR", help="cache directory shared by login and compute nodes"
    )
    parser.add_argument(
        "--offline", action="store_true", help="only check the cache, download nothing"
    )
    parser.add_argument(
        "--site", type=Path, metavar="FILE", help="site file to use instead of launch/site.yaml"
    )
    # A setting after an option is not one of `overrides`.
    parser.set_defaults(run=_run, passes_on="settings")


def _run(arguments: argparse.Namespace) -> None:
    from launch.script import caches
    from launch.site import load_site
    from mmsa.config import load_config

    words = [*arguments.overrides, *take_imports(arguments.rest)[1]]
    if arguments.config is not None and "=" in arguments.config:
        arguments.config, words = None, [arguments.config, *words]
    config = load_config(arguments.config, words)
    cache = arguments.cache or load_site(arguments.site).cache
    # Before the first import of either library, which reads these variables once.
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
        problem = problem_of(fetch)
        print(f"{'MISSING' if problem else 'there':<8} {name}: {source}")
        if problem:
            missing.append(f"{name}: {problem}")
    if missing:
        who = arguments.config or "the model"
        raise UserError(
            one_or_many(missing, where=f"{who} needs files that are not in the cache")
            + ". Repeat this command where there is a network"
        )
    if arguments.cache:
        print(f"to use this cache in jobs, add `cache: {cache}` to launch/site.yaml")


def missing_for_jobs(config: Config, words: Sequence[str], cache: str | None) -> list[str]:
    """What jobs without network would not find in `cache`; `words` are CONFIG and OVERRIDES.

    Runs `prefetch --offline` in a subprocess, because the libraries read the location of their
    caches only once; skipped if `config` states all that a model is built from. Where it ends
    before it has looked, its last line says why.
    """
    if _names_no_source(config):
        return []
    imports, others = take_imports(words)
    command = [sys.executable, "-m", "launch", *as_options(imports), "prefetch", *others]
    command += ["--offline", *(["--cache", cache] if cache else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    missing = [line for line in done.stdout.splitlines() if line.startswith("MISSING")]
    if done.returncode and not missing:
        return done.stderr.strip().splitlines()[-1:] or [f"prefetch ended with {done.returncode}"]
    return missing


def _names_no_source(config: Config) -> bool:
    """Whether encoders, tokenizer and `train.init_from` need nothing but this configuration.

    Without `config` an encoder may get its architecture from the hub, whatever its weights are.
    """
    text, image, start = config.model.text_encoder, config.model.image_encoder, config.train
    return (
        all(one.weights == "none" and one.config is not None for one in (text, image))
        and (text.tokenizer or "").startswith("words:")
        and start.init_from is None
    )


def problem_of(fetch: Callable[[], object]) -> str:
    try:
        fetch()
    except NotOnThisMachine as error:
        return "; ".join(error.problems)
    except UserError as error:
        return str(error)
    return ""


def parts_of(config: Config) -> list[Part]:
    """(what, source, how a run gets it) for everything that a run would download."""
    from mmsa.data.text import load_tokenizer
    from mmsa.export import read_export
    from mmsa.export_target import resolve_export
    from mmsa.models.build_encoders import build_image_encoder, build_text_encoder
    from mmsa.models.fusion import fusion_class
    from mmsa.training.model_parts import tokenizer_name
    from mmsa.training.warm_start import reads, with_architectures_of

    head, model = fusion_class(config.model.fusion.name), config.model
    brought: dict[str, str] = {}  # encoder -> the export that brings it, and its tokenizer
    if config.train.init_from is not None:
        export = read_export(resolve_export(Path(config.train.init_from).expanduser()).directory)
        model = with_architectures_of(export, model)
        names = [name for name in ("text_encoder", "image_encoder") if reads(export, name)]
        brought = dict.fromkeys(names, f"in {config.train.init_from}")
    text, image = model.text_encoder, model.image_encoder
    parts: list[Part] = []
    if head.uses_text:
        name, source = tokenizer_name(text), brought.get("text_encoder")
        if not name.startswith("words:") and source is None:  # words are those of the shards
            parts.append(("tokenizer", name, lambda: load_tokenizer(name, config.data.max_tokens)))
        source = source or _source(text)
        parts.append(("text encoder", source, lambda: build_text_encoder(text)))
    if head.uses_image:
        source = brought.get("image_encoder") or _source(image)
        parts.append(("image encoder", source, lambda: build_image_encoder(image)))
    return parts


def _source(encoder: TextEncoderConfig | ImageEncoderConfig) -> str:
    if encoder.weights == "none":
        return f"{encoder.name}, random weights"
    return encoder.name if encoder.weights == "pretrained" else encoder.weights
