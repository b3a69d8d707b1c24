"""The record of a run: valid JSON-LD after RO-Crate 1.1, complete, and true to the files."""

import datetime
import json
import re
import urllib.parse

import pytest

from cryon2n import crate, files
from cryon2n.errors import InputError
from making import command

NOW = datetime.datetime(2026, 11, 28, 12, 0, tzinfo=datetime.UTC)


@pytest.fixture
def results(tmp_path):
    """A data set's results, with names that must be escaped and files that are no part of them."""
    folder = tmp_path / "results/tiny"
    files.write_text(folder / "report.html", "<html></html>")
    files.write_text(folder / "denoised/raw/mic+1 a.mrc", "pixels")
    files.write_json(folder / "denoised/raw/mic+1 a.json", {"method": "raw", "device": "CPU, 1 thread"})
    weights = {"file": "unet.sav", "sha256": "ab" * 32}
    topaz = {"method": "topaz-unet", "topaz": "0.3.20", "torch": "2", "device": "# cuda=False", "weights": weights}
    files.write_json(folder / "denoised/topaz-unet/mic+1 a.json", topaz)
    files.write_json(folder / "halves/m1.json", {"inputs": {"movie 1.mrc": "cd" * 32, "gain.mrc": "ef" * 32}})
    files.write_json(folder / "halves/m2.json", {"inputs": {"movie 2.mrc": "12" * 32, "gain.mrc": "ef" * 32}})
    files.write_json(folder / "models/net/metrics.json", {"settings": {"seed": 3}, "device": "a chip"})
    for name in ("models/net/checkpoints/last.ckpt", "bench/loaders.tsv", ".hidden", "ro-crate-metadata.json"):
        files.write_text(folder / name, "not part of it")
    files.write_json(tmp_path / "truth/m1.json", {"seed": 77})
    return folder


def config(kind="phantom"):
    source = {"kind": kind, "empiar": {"entry": 10025}, "phantom": {}}
    return {"dataset": "tiny", "source": source, "split": {"seed": 5}, "compare": {"seed": 0}, "models": {"net": {}}}


def by_id(found):
    entities = {entity["@id"]: entity for entity in found["@graph"]}
    assert len(entities) == len(found["@graph"]), "an @id stands twice"
    return entities


def references(value):
    """All that is referred to by {"@id": …} below a value."""
    if isinstance(value, dict):
        if set(value) == {"@id"}:
            yield value["@id"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


@pytest.mark.parametrize("kind", ["phantom", "empiar", "movies", "halves"])
def test_it_is_a_flat_crate_by_the_specification(results, kind):
    found = json.loads(json.dumps(crate.build_crate(config(kind), results, None, NOW)))
    assert found["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = by_id(found)
    descriptor = entities["ro-crate-metadata.json"]
    assert descriptor["@type"] == "CreativeWork" and descriptor["about"] == {"@id": "./"}
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    root = entities["./"]
    assert root["@type"] == "Dataset" and {"name", "description", "license"} <= set(root)
    assert datetime.datetime.fromisoformat(root["datePublished"]) == NOW
    # Flat: an entity's values are text, numbers, lists of them, or references to entities that are there.
    for entity in found["@graph"]:
        assert entity["@type"] and isinstance(entity["@id"], str)
        for value in entity.values():
            for part in value if isinstance(value, list) else [value]:
                assert not isinstance(part, dict) or set(part) == {"@id"}, entity["@id"]
        for target in references(list(entity.values())):
            assert target in entities or re.match(r"https?://", target), target
    data = {i for i, e in entities.items() if e["@type"] == "File"}
    assert data == {part["@id"] for part in root["hasPart"]}
    assert not any(" " in i or i.startswith("/") for i in entities)


def test_every_file_is_there_with_its_hash_and_nothing_else(results):
    entities = by_id(crate.build_crate(config(), results, None, NOW, threads=2))
    found = {urllib.parse.unquote(i): e for i, e in entities.items() if e["@type"] == "File"}
    wanted = {"report.html", "denoised/raw/mic+1 a.mrc", "denoised/raw/mic+1 a.json"}
    wanted |= {"denoised/topaz-unet/mic+1 a.json", "halves/m1.json", "halves/m2.json", "models/net/metrics.json"}
    assert set(found) == wanted
    for name, entity in found.items():
        assert entity["sha256"] == files.sha256_of(results / name)
        assert entity["contentSize"] == str((results / name).stat().st_size)
    inputs = {e["name"]: e["sha256"] for i, e in entities.items() if i.startswith("#input/")}
    assert inputs == {"movie 1.mrc": "cd" * 32, "movie 2.mrc": "12" * 32, "gain.mrc": "ef" * 32}


def test_source_seeds_software_and_machine(results, tmp_path):
    entities = by_id(crate.build_crate(config("empiar"), results, tmp_path / "truth", NOW))
    entry = entities["https://www.ebi.ac.uk/empiar/EMPIAR-10025/"]
    assert "https://doi.org/10.6019/EMPIAR-10025" in entry["identifier"]
    seeds = {e["name"]: e["value"] for i, e in entities.items() if i.startswith("#seed/")}
    wanted = {"split.seed": 5, "compare.seed": 0, "models.net.seed": 3, "source.phantom.seed": 77}
    assert seeds == wanted
    assert json.loads(entities["#config"]["text"]) == config("empiar")
    assert re.fullmatch("code version [0-9a-f]{12}", entities["#software/cryon2n"]["identifier"])
    assert entities["#software/topaz-unet"]["sha256"] == "ab" * 32
    run = entities["#run"]
    assert {"@id": "#software/topaz-unet"} in run["instrument"] and {"@id": entry["@id"]} in run["object"]
    assert entities["#machine/devices"]["value"] == "CPU, 1 thread; a chip; cuda=False"
    assert int(entities["#machine/cores"]["value"]) >= 1


def test_the_command_writes_it_and_writes_it_again(results, tmp_path, capsys):
    words = ["write-crate", "--config-json", json.dumps(config()), "--results", results, "--truth", tmp_path / "truth"]
    for _ in range(2):  # the record is no part of itself
        assert command(*words) == 0
        entities = by_id(files.read_json(results / "ro-crate-metadata.json"))
        assert sum(e["@type"] == "File" for e in entities.values()) == 7
    assert command("write-crate", "--config-json", "{", "--results", results) == 2
    assert "not valid JSON" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds no results"):
        crate.build_crate(config(), tmp_path / "empty", None, NOW)
