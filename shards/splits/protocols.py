"""Named rules for splits. The hash of a split identifies it, whatever rule made it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmsa.data.manifest import ProtocolInfo
from mmsa.errors import UserError
from mmsa.foundation.near_names import nearest_name
from shards.duplicates.groups import GROUP_RULE, find_groups, group_facts, group_ids
from shards.duplicates.leak_counts import leak_counts
from shards.example import EncodedSample, Example
from shards.splits import published
from shards.splits.by_group import fold_groups, split_groups
from shards.splits.by_hash import SPLITS, split_by_hash
from shards.splits.from_file import read_split_file
from shards.splits.own_split import COLUMN, by_column

# What --protocol takes -> one line of help.
PROTOCOLS: dict[str, str] = {
    "clean": "duplicates kept together, stratified by class (--seed, --ratios; the default)",
    "random": "stratified by class, duplicates ignored (--seed, --ratios)",
    "kfold:K/N": "fold K of N, duplicates kept together: K is test, the next val (--seed)",
    "clmlf": "the one 8:1:1 split of CLMLF and its successors, MVSA-Single and -Multiple",
    "tib10:K": "fold K, 1 to 10, of Cheema et al. 2021, MVSA-Single and -Multiple",
    "agree622": "samples whose text and image labels agree, 6:2:2, duplicates ignored (--seed)",
    "file:PATH": "from a CSV file of yours with the columns id and split",
    "column": "from the table's own column split, or --split-column (the default where it has one)",
}
_SEEDED = ("clean", "random", "kfold", "agree622")
_WITH_RATIOS = ("clean", "random")
_EIGHT_ONE_ONE = {"train": 8, "val": 1, "test": 1}
_SIX_TWO_TWO = {"train": 6, "val": 2, "test": 2}
_SHOWN_IDS = 5
_LARGE_GROUP_PERCENT = 1


@dataclass(frozen=True)
class Protocol:
    """A parsed --protocol. `fold` and `num_folds` count from 1; 0 where the rule has none."""

    name: str
    fold: int = 0
    num_folds: int = 0
    path: str = ""


@dataclass(frozen=True)
class Assignment:
    """The split of each sample.

    `split_of` and `group_of` have the same keys; `left_out` has all others with the reason. `facts`
    is JSON: `duplicates` (`group_facts`), `twins` (`leak_counts`) and `warnings`, sentences.
    """

    split_of: dict[str, str]
    info: ProtocolInfo
    group_of: dict[str, int]
    left_out: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def parse_ratios(text: str) -> dict[str, int]:
    """Read "8:1:1" as train, val, test; a part may be 0. Raises `UserError` for anything else."""
    parts = text.split(":")
    if len(parts) != len(SPLITS) or not all(p.isascii() and p.isdigit() for p in parts):
        raise UserError(f"--ratios {text} must be three whole numbers, train:val:test, as in 8:1:1")
    ratios = dict(zip(SPLITS, (int(part) for part in parts), strict=True))
    if not any(ratios.values()):
        raise UserError(f"--ratios {text} leaves no split; one of the three must be at least 1")
    return ratios


def parse_protocol(text: str) -> Protocol:
    """Read --protocol; raises `UserError` for anything not in `PROTOCOLS`. Opens no file."""
    name, _, argument = text.partition(":")
    if name == "tib10":
        if argument.isascii() and argument.isdigit() and 1 <= int(argument) <= published.NUM_FOLDS:
            return Protocol(name, fold=int(argument), num_folds=published.NUM_FOLDS)
        raise UserError(f"--protocol {text} has no valid fold; write tib10:K with K from 1 to 10")
    if name == "kfold":
        numbers = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", argument)
        fold, num_folds = (int(number) for number in numbers.groups()) if numbers else (0, 0)
        if num_folds >= 3 and 1 <= fold <= num_folds:
            return Protocol(name, fold=fold, num_folds=num_folds)
        raise UserError(
            f"--protocol {text} has no valid fold; write kfold:K/N with N at least 3 (test, val "
            "and train are different folds) and K from 1 to N, as in kfold:1/5"
        )
    if name == "file" and argument:
        return Protocol(name, path=argument)
    if name in PROTOCOLS and not argument and text == name:
        return Protocol(name)
    forms = {form.partition(":")[0]: form for form in PROTOCOLS}
    near = nearest_name(name, forms)
    hint = f"did you mean {forms[near]}? " if near else ""
    raise UserError(f"unknown protocol '{text}'; {hint}known: {', '.join(PROTOCOLS)}")


def protocol_hash(assignment: Mapping[str, str]) -> str:
    """sha256 over the sorted lines "SPLIT<TAB>KEY<LF>" of key -> split, in hex."""
    lines = sorted(f"{split}\t{key}\n" for key, split in assignment.items())
    return hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()


def assign(
    protocol: str,
    samples: Sequence[EncodedSample],
    *,
    dataset: str,
    seed: int = 0,
    ratios: Mapping[str, int] | None = None,
    allow_missing: bool = False,
) -> Assignment:
    """Split `samples` of the source `dataset` by `protocol`; their order does not matter.

    `ratios` None is the protocol's own (8:1:1; 6:2:2 for agree622). Raises `UserError` for an
    unknown protocol, for settings that it does not take, for a data set that it is not for, and,
    unless `allow_missing`, for ids of the protocol that are not among `samples`.
    """
    parsed = parse_protocol(protocol)
    check_settings(parsed, dataset=dataset, seed=seed, ratios=ratios)
    groups = find_groups(samples)
    warnings: list[str] = []
    if parsed.name in ("clmlf", "tib10", "file"):
        split_of, name, settings = _by_list(parsed, samples, dataset, allow_missing, warnings)
        reason = f"not in protocol {name}"
    elif parsed.name == COLUMN:
        split_of, name, settings = by_column(samples), COLUMN, {}
        reason = "its cell names no split"
    else:
        split_of, settings = _by_rule(parsed, samples, groups, seed, ratios)
        name = parsed.name if not parsed.num_folds else f"kfold:{parsed.fold}/{parsed.num_folds}"
        reason = "text and image labels differ"
    kept = [[s for s in group if s.key in split_of] for group in groups]
    kept = [group for group in kept if group]
    group_of = group_ids(kept)
    warnings += _warnings(kept, split_of, settings.get("ratios"))
    return Assignment(
        split_of=split_of,
        info=ProtocolInfo(name=name, version=1, settings=settings, hash=protocol_hash(split_of)),
        group_of=group_of,
        left_out={s.key: reason for s in samples if s.key not in split_of},
        facts={
            "duplicates": group_facts(kept),
            "twins": leak_counts(split_of, group_of),
            "warnings": warnings,
        },
    )


def check_settings(
    protocol: Protocol, *, dataset: str, seed: int, ratios: Mapping[str, int] | None
) -> None:
    """The checks of `assign` that need no samples, before the raw data is read."""
    name = protocol.name
    if seed < 0:
        raise UserError(f"--seed {seed} must be at least 0")
    if name in ("clmlf", "tib10") and dataset not in published.DATASETS:
        raise UserError(
            f"the protocol {name} is a list of ids of {' and '.join(published.DATASETS)}; these "
            f"are samples of {dataset}. Use clean, or file:PATH with your own list"
        )
    if seed and name not in _SEEDED:
        raise UserError(f"the protocol {name} is not random; leave out --seed")
    if ratios is not None and name not in _WITH_RATIOS:
        raise UserError(
            f"the protocol {name} has its own proportions; leave out --ratios, or use clean"
        )
    if name == "file":
        read_split_file(protocol.path)  # fails now and not after an hour of packing


def _by_rule(
    protocol: Protocol,
    samples: Sequence[EncodedSample],
    groups: Sequence[Sequence[EncodedSample]],
    seed: int,
    ratios: Mapping[str, int] | None,
) -> tuple[dict[str, str], dict[str, Any]]:
    """(key -> split, settings) of a protocol that computes its split."""
    if protocol.name in ("random", "agree622"):
        shares = _shares(ratios, _EIGHT_ONE_ONE if protocol.name == "random" else _SIX_TWO_TWO)
        chosen = samples
        if protocol.name == "agree622":
            chosen = [s for s in samples if _labels_agree(s.example)]
            if not chosen:
                raise UserError(
                    "the protocol agree622 takes samples whose text and image labels agree; "
                    f"none of the {len(samples)} has two labels that do. Use another protocol"
                )
        labels = {sample.key: sample.example.label for sample in chosen}
        return split_by_hash(labels, seed=seed, ratios=shares), {"seed": seed, "ratios": shares}
    labelled = [[(s.key, s.example.label) for s in group] for group in groups]
    settings: dict[str, Any] = {"seed": seed}
    if protocol.name == "clean":
        settings["ratios"] = _shares(ratios, _EIGHT_ONE_ONE)
        of_group = split_groups(labelled, seed=seed, ratios=settings["ratios"])
    else:
        # Test is fold K and val the next (after the last, the first), so each fold is each once.
        folds = fold_groups(labelled, seed=seed, num_folds=protocol.num_folds)
        held_out = {protocol.fold - 1: "test", protocol.fold % protocol.num_folds: "val"}
        of_group = [held_out.get(fold, "train") for fold in folds]
    split_of = {s.key: split for group, split in zip(groups, of_group, strict=True) for s in group}
    return split_of, {**settings, **GROUP_RULE}


def _labels_agree(example: Example) -> bool:
    return bool(example.text_label) and example.text_label == example.image_label


def _shares(ratios: Mapping[str, int] | None, default: Mapping[str, int]) -> dict[str, int]:
    return {split: (ratios or default)[split] for split in SPLITS}


def _by_list(
    protocol: Protocol,
    samples: Sequence[EncodedSample],
    dataset: str,
    allow_missing: bool,
    warnings: list[str],
) -> tuple[dict[str, str], str, dict[str, Any]]:
    """(key -> split, name, settings) of a protocol that is a list of ids."""
    settings: dict[str, Any] = {}
    suffix = ""
    if protocol.name == "file":
        wanted, settings = read_split_file(protocol.path)
    elif protocol.name == "clmlf":
        wanted = published.clmlf(dataset)
    else:
        wanted = published.tib10(dataset, protocol.fold)
        suffix = f":{protocol.fold}"
    id_of = {sample.key: sample.example.source_id for sample in samples}
    split_of = {key: wanted[number] for key, number in id_of.items() if number in wanted}
    present = set(id_of.values())
    missing = sorted((number for number in wanted if number not in present), key=_by_number)
    name = protocol.name + suffix
    if not split_of:
        raise UserError(
            f"none of the {len(samples)} usable samples is among the {len(wanted)} ids of the "
            f"protocol {name} (the first: {', '.join(list(wanted)[:_SHOWN_IDS])}). Check that the "
            "raw data and the protocol are of the same data set"
        )
    if missing:
        shown = ", ".join(missing[:_SHOWN_IDS]) + (", ..." if len(missing) > _SHOWN_IDS else "")
        partial = f"{protocol.name}-partial{suffix}"
        if not allow_missing:
            raise UserError(
                f"the protocol {name} has {len(wanted)} ids, and {len(missing)} of them are not "
                f"among the usable samples ({shown}). Complete the raw data, or add "
                f"--allow-missing: it packs the {len(split_of)} that exist as '{partial}', "
                f"whose results must not be compared with those of {name}"
            )
        settings["missing"] = len(missing)
        warnings.append(f"{len(missing)} of the {len(wanted)} ids of {name} are missing: {partial}")
        name = partial
    if protocol.name != "file":
        labels = published.rows(dataset)
        differing = sum(
            s.key in split_of and s.example.label != labels[id_of[s.key]].label for s in samples
        )
        if differing:
            warnings.append(f"{differing} labels differ from the fused labels that {name} is about")
    return split_of, name, settings


def _by_number(source_id: str) -> tuple[int, str]:
    return (int(source_id) if source_id.isdecimal() else 0), source_id


def _warnings(
    groups: Sequence[Sequence[EncodedSample]],
    split_of: Mapping[str, str],
    ratios: Mapping[str, int] | None,
) -> list[str]:
    total = len(split_of)
    large = [g for g in groups if len(g) > 1 and len(g) * 100 > total * _LARGE_GROUP_PERCENT]
    found = []
    if large:
        largest = max(large, key=len)
        found.append(
            f"duplicate groups of over {_LARGE_GROUP_PERCENT} % of the set: {len(large)}; the "
            f"largest holds {len(largest)} of {total} samples ({largest[0].key} is one)"
        )
    empty = [split for split in SPLITS if split not in split_of.values()]
    if ratios is not None and not ratios["train"]:
        # A set to be evaluated: its user has left these splits out.
        empty = [split for split in empty if ratios[split]]
    if empty:
        # In `clean` a group stays together, and one that is too large to hold out is trained on.
        why = "" if not large else "; --protocol random does not keep duplicates together"
        found.append(f"no samples in {' and '.join(empty)}{why}")
    return found
