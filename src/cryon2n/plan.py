"""Say what a config will cost before it starts: patches, GB to fetch and to write, loader."""

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from cryon2n import files, log, mrcio
from cryon2n.errors import InputError
from cryon2n.folds import SPLITS
from cryon2n.study import Study, all_methods, read_study


def frame_geometry(config: dict[str, Any], study: Study) -> tuple[int, int, int, int] | None:
    """Return frames, rows, columns and bytes per pixel of the raw movies (1 frame of 2 halves for kind ``halves``).

    From the config or its sheet, else from the first file's header; None where none tells.
    """
    source = config["source"]
    if source["kind"] == "phantom":
        from cryon2n.phantom_stage import PhantomSettings

        defaults = {f.name: f.default for f in dataclasses.fields(PhantomSettings)}
        h, w = source["phantom"].get("shape", defaults["shape"])
        return int(source["phantom"].get("n_frames", defaults["n_frames"])), int(h), int(w), 1
    if study.geometry is not None:
        g = study.geometry
        if None in (g.frames, g.h, g.w, g.data_type):
            return None
        return g.frames, g.h, g.w, np.dtype(g.data_type).itemsize if g.data_type != "uint4" else 1
    first = study.sources[study.micrographs[0]]
    path = Path(first.get("path") or first["a"])
    if not path.exists() or first.get("ending", ".mrc") != ".mrc":
        return None
    with mrcio.open_mrc(path) as mrc:
        n = mrc.data.shape[0] if mrc.data.ndim == 3 else 1
        return n, *mrc.data.shape[-2:], mrc.data.dtype.itemsize


def plan_text(config: dict[str, Any]) -> str:
    """Say what a config will do: micrographs, patches, GB, loader.  Writes nothing."""
    from cryon2n import device, loaders
    from cryon2n.settings import build
    from cryon2n.shards_tiles import ShardSettings, most_pairings, patch_positions

    study = read_study(config)
    kind, n = config["source"]["kind"], len(study.micrographs)
    split = {k: len(next(iter(study.folds.values()))[k]) for k in SPLITS}
    k_folds, tested = len(study.folds), len(study.test)
    lines = [
        f"plan of {config['dataset']}",
        f"  {'source':12} {kind}, {n} micrographs: " + ", ".join(f"{split[k]} {k}" for k in SPLITS),
    ]
    if k_folds > 1:
        lines[-1] += f" (in the first of {k_folds} folds)"
    if kind == "empiar":
        try:
            download = download_text(config["dataset"], study, study.micrographs)
        except InputError as error:  # a plan says it; what is really asked for may be less
            download = f"WARNING: {error}"
        lines.append(f"  {'download':12} {download}")
    geometry = frame_geometry(config, study)
    if geometry is None:
        return "\n".join([*lines, "  sizes are not known: neither the sheet nor a file that is there tells"])
    frames, h, w, size = geometry
    from_pairs = kind == "halves"
    raw = n * frames * h * w * size * (2 if from_pairs else 1)
    bin_ = 1 if from_pairs else config["halves"].get("bin", 1)
    h, w = h // bin_, w // bin_
    groups = 0 if from_pairs else config["halves"].get("groups", 2)
    images = 2 + (groups if groups > 2 else 0)  # each micrograph's halves, and the stack of its groups
    halves = n * images * h * w * 4
    settings = build(ShardSettings, config["shards"], "config: shards")
    patches, warnings = 0, []
    try:
        each = len(patch_positions({"valid": [0, h, 0, w], "micrograph": "a micrograph"}, settings))
        patches = each * settings.pairings * split["train"]
    except InputError as error:  # the plan does not stop what is asked for, which may be halves only
        warnings.append(f"  WARNING: {error}")
    if settings.pairings > (most := most_pairings(groups or 2)):
        found = "halves of another program have no groups" if from_pairs else f"halves: groups {groups} makes {most}"
        warnings.append(f"  WARNING: shards: pairings {settings.pairings} cannot be had: {found}")
    shard_bytes = loaders.patch_bytes(patches, settings.patch)
    methods = len(all_methods(config))
    denoised = tested * methods * 5 * h * w * 4
    where = device.choose(config["compute"]["device"])
    lines += [
        f"  {'input':12} {raw / 1e9:.1f} GB" + ("" if from_pairs else f" raw: {frames} frames each"),
        f"  {'halves':12} {halves / 1e9:.2f} GB: {images} x {n} of {h} x {w} px (bin {bin_})",
        f"  {'shards':12} {shard_bytes / 1e9:.2f} GB: {patches} patches of {settings.patch} px, two sides, float16"
        + (f", {settings.pairings} pairings" if settings.pairings > 1 else "")
        + (f" (of each of {k_folds} folds)" if k_folds > 1 else ""),
        f"  {'denoised':12} {denoised / 1e9:.2f} GB: {methods} methods on {tested} test micrographs",
    ]
    for name, model in config["models"].items():
        loader, why = loaders.choose_loader(model.get("loader", "auto"), shard_bytes, where, model.get("ram_GB", 0.0))
        lines.append(f"  {'model ' + name:12} on {device.describe(where)}; loader {loader}: {why}")
    need = (0 if from_pairs else raw) + halves + k_folds * shard_bytes + denoised
    free = shutil.disk_usage(".").free
    there = sum(bytes_there(config["dataset"], study, study.micrographs))
    lines.append(f"  {'disk':12} {need / 1e9:.1f} GB in all, {free / 1e9:.0f} GB free here")
    if need - there > free:
        warnings.append("  WARNING: that does not fit; free some space or lower source: n_micrographs")
    return "\n".join([*lines, *warnings])


# Downloads


def bytes_there(dataset: str, study: Study, micrographs: Iterable[str]) -> list[int]:
    """Return, per micrograph, the bytes of its raw movie that are on the disk, complete or not."""
    there = []
    for name in micrographs:
        path = Path(f"data/{dataset}/raw/{name}{study.sources[name].get('ending', '.mrc')}")
        found = [p.stat() for p in (path, path.with_name(f"{path.name}.part")) if p.exists()]
        # A part has holes until it is complete.
        there.append(max((min(s.st_size, 512 * s.st_blocks) for s in found), default=0))
    return there


def download_text(dataset: str, study: Study, micrographs: Iterable[str]) -> str:
    """Say how much of some micrographs' movies is there and how much is still to be fetched.

    Raises
    ------
    InputError
        The disk is too small for the rest.
    """
    names = list(micrographs)
    sizes = [study.sources[name]["bytes"] for name in names]
    pairs = zip(sizes, bytes_there(dataset, study, names), strict=True)
    left = sum(max(0, size - there) for size, there in pairs if size is not None)
    total, unknown = sum(size or 0 for size in sizes), sizes.count(None)
    free = shutil.disk_usage(".").free
    text = (
        f"{len(names)} movies, {total / 1e9:.2f} GB"
        + (f" and {unknown} of unknown size" if unknown else "")
        + f": {(total - left) / 1e9:.2f} GB there, {left / 1e9:.2f} GB to fetch, {free / 1e9:.0f} GB free"
    )
    if left > free:
        raise InputError(
            f"data/{dataset}/raw: the disk is too small ({text}); free some space, lower source: n_micrographs, "
            "or fetch fewer frames with source: frames"
        )
    return text


def load_config(path: Path, schema: Path | None) -> dict[str, Any]:
    """Load a config file and fill in the schema's defaults, as the workflow does."""
    import yaml
    from snakemake.utils import validate

    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot read the config ({error})") from None
    if schema is not None:
        try:
            validate(config, str(schema.resolve()))
        except Exception as error:  # snakemake wraps jsonschema's error in its own
            raise InputError(f"{path}: {error}") from None
    return config


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="config file; run from the project's folder")
    source.add_argument("--config-json", help="the whole config as JSON, as the workflow gives it")
    parser.add_argument("--schema", type=Path, default=Path("workflow/schemas/config.schema.yaml"))
    parser.add_argument("--out", type=Path, help="write the plan to this file, too")


def _run(args: argparse.Namespace) -> None:
    config = json.loads(args.config_json) if args.config_json else load_config(args.config, args.schema)
    text = plan_text(config)
    print(text)
    if args.out:
        files.write_text(args.out, text + "\n")
        log.say(f"written to {args.out}")


COMMANDS = {"plan": (_add_arguments, _run)}
