"""The record of a whole run as an RO-Crate 1.1 (https://w3id.org/ro/crate/1.1): ``ro-crate-metadata.json``.

JSON-LD beside the results: where the data come from (accession, hashes of the inputs), every file of the results with
its SHA-256, the config, seeds, software, code version and machine.  Nothing here needs the network.
"""

import argparse
import datetime
import json
import mimetypes
import os
import platform
import urllib.parse
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cryon2n import codeversion, files, log, software
from cryon2n.errors import InputError
from cryon2n.settings import add_config_argument, config_from_arguments

NAME = "ro-crate-metadata.json"
# The specification's context, and the one term that is not in it.
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
# What comes and goes beside the results: of a training under way, and of benches asked for at another time.
LEFT_OUT = {"checkpoints", "tensorboard", "bench"}
FORMATS = {
    ".mrc": "application/x-mrc",
    ".tsv": "text/tab-separated-values",
    ".md": "text/markdown",
    ".json": "application/json",
    ".safetensors": "application/octet-stream",
}

Entity = dict[str, Any]


def result_files(results: Path) -> list[Path]:
    """Return the files of a data set's results, sorted: without this record and what `LEFT_OUT` names."""
    found = []
    for folder, folders, names in os.walk(results):
        folders[:] = sorted(d for d in folders if d not in LEFT_OUT and not d.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if not name.startswith(".") and name != NAME]
    return [path for path in found if path.is_file()]


def file_entities(results: Path, threads: int) -> list[Entity]:
    """Return one entity per file of the results, with size and SHA-256."""
    paths = result_files(results)
    if not paths:
        raise InputError(f"{results}: holds no results; run the workflow first")
    with ThreadPoolExecutor(max(1, threads)) as executor:
        hashes = list(executor.map(files.sha256_of, paths))
    out = []
    for path, sha256 in zip(paths, hashes, strict=True):
        relative = path.relative_to(results).as_posix()
        kind = FORMATS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        out.append(
            {
                "@id": urllib.parse.quote(relative),
                "@type": "File",
                "name": relative,
                "contentSize": str(path.stat().st_size),
                "encodingFormat": kind,
                "sha256": sha256,
            }
        )
    return out


def input_entities(results: Path) -> list[Entity]:
    """Return one entity per file that the halves were made from, by the hashes in their records."""
    known: dict[str, str] = {}
    for path in sorted((results / "halves").glob("*.json")):
        record = files.read_json(path)
        if isinstance(record, dict):
            known.update({name: sha for name, sha in (record.get("inputs") or {}).items() if sha})
    return [
        {"@id": f"#input/{urllib.parse.quote(name)}", "@type": "CreativeWork", "name": name, "sha256": sha256}
        for name, sha256 in sorted(known.items())
    ]


def source_entity(source: Mapping[str, Any]) -> Entity:
    """Return where the data come from: an accession, a simulation, or files of the user's own."""
    if source["kind"] == "empiar":
        accession = f"EMPIAR-{source['empiar']['entry']}"
        return {
            "@id": f"https://www.ebi.ac.uk/empiar/{accession}/",
            "@type": "Dataset",
            "name": accession,
            "identifier": [accession, f"https://doi.org/10.6019/{accession}"],
            "license": {"@id": "https://creativecommons.org/publicdomain/zero/1.0/"},
        }
    words = {"phantom": "simulated movies", "movies": "movies of the user's own", "halves": "halves made elsewhere"}
    return {"@id": "#source", "@type": "CreativeWork", "name": words[source["kind"]]}


def seeds(config: Mapping[str, Any], results: Path, truth: Path | None) -> dict[str, int]:
    """Return the seeds of the run by name: of the config, of the trainings' records and of a simulation's."""
    out: dict[str, int] = {}

    def walk(part: Any, where: str) -> None:
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if key == "seed" and isinstance(value, int):
                out[f"{where}seed"] = value
            walk(value, f"{where}{key}.")

    walk(config, "")
    for path in sorted(results.glob("models/**/metrics.json")):
        recorded = (files.read_json(path).get("settings") or {}).get("seed")
        if recorded is not None:
            out[".".join([*path.parent.relative_to(results).parts, "seed"])] = recorded
    simulated = sorted(truth.glob("*.json")) if truth else []
    if simulated and "seed" in (record := files.read_json(simulated[0])):
        out["source.phantom.seed"] = record["seed"]
    return out


def machine() -> dict[str, str]:
    """Return what the machine is, without its name: system, processor, cores, memory."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    out = {"system": f"{platform.system()} {platform.release()}", "processor": processor}
    out["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        out["memory_GB"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f}"
    return out


def devices(results: Path) -> list[str]:
    """Return the devices that the run's own records name: of the trainings and of the denoising."""
    paths = [*results.glob("models/**/metrics.json"), *results.glob("models/**/record.json")]
    named = {str(files.read_json(path).get("device") or "") for path in (*paths, *results.glob("denoised/*/*.json"))}
    return sorted(name.lstrip("# ") for name in named if name)


def properties(prefix: str, values: Mapping[str, Any]) -> list[Entity]:
    """Return named values as entities."""
    return [
        {"@id": f"#{prefix}/{urllib.parse.quote(name)}", "@type": "PropertyValue", "name": name, "value": value}
        for name, value in values.items()
    ]


def build_crate(
    config: Mapping[str, Any], results: Path, truth: Path | None, now: datetime.datetime, threads: int = 1
) -> dict[str, Any]:
    """Return the crate.

    Parameters
    ----------
    config : mapping
        The workflow's whole config.
    results : path
        ``results/{dataset}``.
    truth : path or None
        Records of a simulation.
    now : datetime
        With a time zone.
    threads : int
        Files that are hashed at a time.
    """
    data, inputs, source = file_entities(results, threads), input_entities(results), source_entity(config["source"])
    programs = [
        {"@id": f"#software/{name}", "@type": "SoftwareApplication", "name": name, "softwareVersion": version}
        for name, version in software.versions().items()
    ]
    code = codeversion.code_version(*(path.name for path in codeversion.PACKAGE.glob("*.py")))
    programs[0] |= {"identifier": f"code version {code}", "license": "https://spdx.org/licenses/BSD-3-Clause"}
    topaz = _topaz(results)
    seed_values = properties("seed", seeds(config, results, truth))
    machine_values = properties("machine", {**machine(), "devices": "; ".join(devices(results)) or "not recorded"})
    settings = {
        "@id": "#config",
        "@type": "CreativeWork",
        "name": "config of the run, defaults filled in",
        "encodingFormat": "application/json",
        "text": json.dumps(config, sort_keys=True),
    }
    licence = {
        "@id": "#licence",
        "@type": "CreativeWork",
        "name": "not stated",
        "description": "Whoever publishes these results states their licence here.",
    }
    root = {
        "@id": "./",
        "@type": "Dataset",
        "name": f"cryon2n: {config['dataset']}",
        "description": f"Denoising of {config['dataset']} by Noise2Noise, compared with other methods on held-out "
        "micrographs: halves, models, denoised micrographs, tables and report.",
        "datePublished": now.isoformat(timespec="seconds"),
        "license": _id(licence),
        "isBasedOn": _id(source),
        "hasPart": [_id(entity) for entity in data],
        "mentions": {"@id": "#run"},
    }
    run = {
        "@id": "#run",
        "@type": "CreateAction",
        "name": "the workflow's run",
        "endTime": now.isoformat(timespec="seconds"),
        "instrument": [_id(entity) for entity in (*programs, *topaz)],
        "object": [_id(entity) for entity in (settings, source, *inputs)],
        "result": {"@id": "./"},
        "additionalProperty": [_id(entity) for entity in (*seed_values, *machine_values)],
    }
    descriptor = {
        "@id": NAME,
        "@type": "CreativeWork",
        "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
        "about": {"@id": "./"},
    }
    context = [run, settings, licence, source, *inputs, *programs, *topaz, *seed_values, *machine_values]
    return {"@context": CONTEXT, "@graph": [descriptor, root, *data, *context]}


def _topaz(results: Path) -> list[Entity]:
    """Return the versions and weights of Topaz that the records of its runs name."""
    out: dict[str, Entity] = {}
    for path in sorted(results.glob("denoised/*/*.json")):
        record = files.read_json(path)
        if "topaz" not in record:
            continue
        name, weights = record["method"], record.get("weights") or {}
        out.setdefault(
            name,
            {
                "@id": f"#software/{name}",
                "@type": "SoftwareApplication",
                "name": f"Topaz-Denoise, {name}",
                "softwareVersion": record["topaz"],
                "description": f"weights {weights.get('file')}, with torch {record.get('torch')}",
                "sha256": weights.get("sha256"),
            },
        )
    return list(out.values())


def _id(entity: Entity) -> Entity:
    return {"@id": entity["@id"]}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_config_argument(parser)
    add("--results", type=Path, required=True, metavar="DIR", help="results/{dataset}: the crate's root")
    add("--truth", type=Path, metavar="DIR", help="simulated entries: the records of the clean images")
    add("--threads", type=int, default=1, metavar="N", help="files that are hashed at a time")


def _run(args: argparse.Namespace) -> None:
    crate = build_crate(
        config_from_arguments(args), args.results, args.truth, datetime.datetime.now(datetime.UTC), args.threads
    )
    files.write_json(args.results / NAME, crate)
    log.say(f"{args.results / NAME}: {_count(crate['@graph'])} files")


def _count(graph: Iterable[Entity]) -> int:
    return sum(entity["@type"] == "File" for entity in graph)


COMMANDS = {"write-crate": (_add_arguments, _run)}
