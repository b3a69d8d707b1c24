"""Read what a config asks for (micrographs, split, files), and say what it will cost before it starts.

The workflow builds its whole graph from `read_study`: from the config and its sheets alone, never
from the network.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryon2n import files, log, mrcio
from cryon2n.errors import InputError
from cryon2n.methods import BUILT_IN

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Study:
    """What a config asks for.

    Attributes
    ----------
    micrographs : tuple of str
        Names, in the order of the sheet.
    split : dict
        ``train``, ``val``, ``test``: lists of names.
    sources : dict
        Per micrograph, where it comes from: ``url``, ``size`` and ``sha256``; or ``path``; or ``a``,
        ``b`` and ``about`` (arguments of import-halves).
    references : dict
        ``gain`` and ``dark``: a URL or a path, where the source has one.
    """

    micrographs: tuple[str, ...]
    split: dict[str, list[str]]
    sources: dict[str, dict[str, str]]
    references: dict[str, str]


def read_study(config: dict[str, Any]) -> Study:
    """Read the sheets that a validated config names."""
    _check_methods(config)
    source = config["source"]
    kind, n = source["kind"], source["n_micrographs"]
    references: dict[str, str] = {}
    if kind == "phantom":
        if n is None:
            raise InputError("config: source: n_micrographs is missing; wanted the number of movies to simulate")
        sources: dict[str, dict[str, str]] = {f"phantom_{i:04d}": {} for i in range(1, n + 1)}
    elif kind == "empiar":
        sources, references = _empiar_sources(source)
    elif kind == "movies":
        sources = _movie_sources(source)
        references = {k: source[k] for k in ("gain", "dark") if source[k]}
    else:
        sources = _pair_sources(source)
    if n is not None and n > len(sources):
        hint = (
            f"; write a longer one: cryon2n fetch-sheet --entry {source['empiar']['entry']} --movies {n} "
            f"--out {source['sheet']}"
            if kind == "empiar"
            else ""
        )
        raise InputError(f"{source['sheet']}: lists {len(sources)} micrographs, n_micrographs asks for {n}{hint}")
    names = tuple(sources)[:n]
    return Study(names, split_names(names, config["split"]), {k: sources[k] for k in names}, references)


def _check_methods(config: dict[str, Any]) -> None:
    models, compare = list(config["models"]), config["compare"]
    taken = [name for name in models if name in BUILT_IN or name == "topaz-env"]
    if taken:
        raise InputError(f"config: models: {', '.join(taken)} is the name of a built-in method; choose another")
    unknown = [name for name in compare["methods"] if name not in BUILT_IN and name not in models]
    if unknown:
        raise InputError(
            f"config: compare: methods: unknown method {', '.join(unknown)}; "
            f"wanted some of {', '.join([*BUILT_IN, *models])}"
        )
    if compare["reference"] not in compare["methods"]:
        raise InputError(
            f"config: compare: reference: found {compare['reference']}, wanted one of compare: methods "
            f"({', '.join(compare['methods'])})"
        )


def _sheet(source: dict[str, Any]) -> str:
    if not source["sheet"]:
        raise InputError(f"config: source: sheet is missing; kind {source['kind']!r} wants a sheet (config/README.md)")
    return str(source["sheet"])


def _empiar_sources(source: dict[str, Any]) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    from cryon2n import empiar

    about = source["empiar"]
    base, entry = about["base_url"], str(about["entry"])
    sources = {
        row.micrograph: {
            "url": empiar.movie_url(base, entry, row),
            "size": "-" if row.size is None else str(row.size),
            "sha256": row.sha256 or "-",
        }
        for row in empiar.read_sheet(_sheet(source))
    }
    references = {
        k: empiar.movie_url(base, entry, empiar.MovieRow(k, source[k], None, None))
        for k in ("gain", "dark")
        if source[k]
    }
    return sources, references


def _movie_sources(source: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Movies of a sheet (columns micrograph, path), or all ``.mrc`` and ``.mrcs`` files of a folder."""
    where = Path(_sheet(source))
    if where.is_dir():
        found = sorted(p for p in where.iterdir() if p.suffix in (".mrc", ".mrcs"))
        if not found:
            raise InputError(f"{where}: holds no .mrc or .mrcs movies")
        return {p.name.removesuffix(p.suffix).removesuffix(".frames"): {"path": str(p)} for p in found}
    rows = files.read_table(where, ("micrograph", "path"))
    return {row["micrograph"]: {"path": str(where.parent / row["path"])} for row in rows}


def _pair_sources(source: dict[str, Any]) -> dict[str, dict[str, str]]:
    from cryon2n.halves_import import read_pair_sheet

    sheet = Path(_sheet(source))
    root = Path(source["folder"]) if source["folder"] else sheet.parent
    out = {}
    for row in read_pair_sheet(sheet):
        about = [
            f"{flag} {row[column]}"
            for flag, column in (
                ("--pixel-size", "pixel_size_A"),
                ("--frames-a", "frames_a"),
                ("--frames-b", "frames_b"),
            )
            if row[column] != "-"
        ]
        about.append(f"--units {source['units']}")
        out[row["micrograph"]] = {
            "a": str(root / row["a"]),
            "b": str(root / row["b"]),
            "about": " ".join(about),
        }
    return out


def split_names(names: tuple[str, ...], wanted: dict[str, Any]) -> dict[str, list[str]]:
    """Split micrographs into train, val and test, by name and never by patch.

    Parameters
    ----------
    names : tuple of str
    wanted : dict
        ``val`` and ``test``: a number, or a list of names; ``seed``.  Numbers are drawn by a hash of
        seed and name, so that a micrograph more does not reshuffle all others.

    Returns
    -------
    dict
        ``train``, ``val``, ``test``: names in their given order.
    """
    order = sorted(names, key=lambda name: hashlib.sha256(f"{wanted['seed']} {name}".encode()).hexdigest())
    named = [set(wanted[s]) for s in ("val", "test") if isinstance(wanted[s], list)]
    unknown = sorted(set().union(*named) - set(names))
    if unknown:
        raise InputError(f"config: split: unknown micrograph {', '.join(unknown)}; wanted names of the sheet")
    if len(named) == 2 and named[0] & named[1]:
        raise InputError(f"config: split: {', '.join(sorted(named[0] & named[1]))} stands in val and in test")
    free = [name for name in order if not any(name in group for group in named)]
    chosen: dict[str, set[str]] = {}
    for which in ("test", "val"):
        if isinstance(wanted[which], list):
            chosen[which] = set(wanted[which])
        else:
            chosen[which], free = set(free[: wanted[which]]), free[wanted[which] :]
    out = {which: [name for name in names if name in chosen[which]] for which in ("val", "test")}
    out["train"] = [name for name in names if name not in chosen["val"] | chosen["test"]]
    short = [which for which in SPLITS if not out[which]]
    if short:
        raise InputError(
            f"config: {len(names)} micrographs leave none for {' and '.join(short)}; "
            "raise source: n_micrographs or lower split: val and test"
        )
    return out


def frame_geometry(config: dict[str, Any], study: Study) -> tuple[int, int, int, int] | None:
    """Return frames, rows, columns and bytes per pixel of the raw movies (1 frame of 2 halves for kind ``halves``).

    From the config, else from the first file's header; None where neither tells.
    """
    source = config["source"]
    if source["kind"] == "phantom":
        import dataclasses

        from cryon2n.phantom_stage import PhantomSettings

        defaults = {f.name: f.default for f in dataclasses.fields(PhantomSettings)}
        h, w = source["phantom"].get("shape", defaults["shape"])
        return int(source["phantom"].get("n_frames", defaults["n_frames"])), int(h), int(w), 1
    if source["kind"] == "empiar":
        return (
            source["empiar"]["n_frames"],
            *source["empiar"]["frame_shape"],
            source["empiar"]["bytes_per_pixel"],
        )
    first = study.sources[study.micrographs[0]]
    path = Path(first.get("path") or first["a"])
    if not path.exists():
        return None
    with mrcio.open_mrc(path) as mrc:
        n = mrc.data.shape[0] if mrc.data.ndim == 3 else 1
        return n, *mrc.data.shape[-2:], mrc.data.dtype.itemsize


def plan_text(config: dict[str, Any]) -> str:
    """Say what a config will do: micrographs, patches, GB, loader.  Writes nothing."""
    from cryon2n import device, loaders
    from cryon2n.settings import build
    from cryon2n.shards import ShardSettings, patch_positions

    study = read_study(config)
    n = len(study.micrographs)
    split = {k: len(study.split[k]) for k in SPLITS}
    lines = [
        f"plan of {config['dataset']}",
        f"  {'source':12} {config['source']['kind']}, {n} micrographs: " + ", ".join(f"{split[k]} {k}" for k in SPLITS),
    ]
    geometry = frame_geometry(config, study)
    if geometry is None:
        return "\n".join([*lines, "  sizes are not known: the first file is not there yet, nor says the config"])
    frames, h, w, size = geometry
    from_pairs = config["source"]["kind"] == "halves"
    raw = n * frames * h * w * size * (2 if from_pairs else 1)
    bin_ = 1 if from_pairs else config["halves"].get("bin", 1)
    h, w = h // bin_, w // bin_
    halves = n * 2 * h * w * 4
    settings = build(ShardSettings, config["shards"], "config: shards")
    per_micrograph = len(patch_positions({"valid": [0, h, 0, w], "micrograph": "a micrograph"}, settings))
    patches = per_micrograph * split["train"]
    shard_bytes = 2 * patches * settings.patch**2 * 2
    methods = len(config["compare"]["methods"])
    denoised = split["test"] * methods * 5 * h * w * 4
    where = device.choose(config["compute"]["device"])
    lines += [
        f"  {'input':12} {raw / 1e9:.1f} GB" + ("" if from_pairs else f" raw: {frames} frames each"),
        f"  {'halves':12} {halves / 1e9:.2f} GB: 2 x {n} of {h} x {w} px (bin {bin_})",
        f"  {'shards':12} {shard_bytes / 1e9:.2f} GB: {patches} patches of {settings.patch} px, two sides, float16",
        f"  {'denoised':12} {denoised / 1e9:.2f} GB: {methods} methods on {split['test']} test micrographs",
    ]
    for name, model in config["models"].items():
        kind, why = loaders.choose_loader(model.get("loader", "auto"), shard_bytes, where)
        lines.append(f"  {'model ' + name:12} on {device.describe(where)}; loader {kind}: {why}")
    need = (0 if from_pairs else raw) + halves + shard_bytes + denoised
    free = shutil.disk_usage(".").free
    lines.append(f"  {'disk':12} {need / 1e9:.1f} GB in all, {free / 1e9:.0f} GB free here")
    if need > free:
        lines.append("  WARNING: that does not fit; free some space or lower source: n_micrographs")
    return "\n".join(lines)


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
