"""Pairings of groups of frames: exact sums, the halves first, no common group, and what is refused."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from conftest import ROOT
from cryon2n import files, groups, loaders, mrcio, pair, plan, shards, shards_pairings, shards_tools, shards_write
from cryon2n.errors import InputError
from cryon2n.halves import normalise_equal, normalise_groups, write_halves
from cryon2n.shards_tiles import ShardSettings
from making import command, field, white

SHAPE = (128, 160)


def write_groups(folder, name, images, frames_each=2, swapped=False):
    """Write K images (K, h, w) as the groups of micrograph `name`, and their sums as its halves; returns the record."""
    images = np.asarray(images, np.float32)
    k, n = len(images), len(images) * frames_each
    halves = [images[1 - i if swapped else i :: 2].sum(0) for i in range(2)]
    valid = [0, SHAPE[0], 0, SHAPE[1]]
    sides = normalise_equal(*halves, valid, (n // 2, n // 2))
    normal = normalise_groups(images, valid, [frames_each] * k, sides["a"]["scale"] / (n // 2))
    each = [{"frames": list(range(i, n, k)), "n_frames": frames_each, "dose_e_per_A2": 1.5} for i in range(k)]
    for i, side in enumerate("ba" if swapped else "ab"):
        about = {"frames": list(range(i, n, 2)), "n_frames": n // 2, "dose_e_per_A2": 0.75 * k}
        sides[side] = {**about, **sides[side]}
    record = {
        "shape": list(SHAPE), "pixel_size_A": 1.5, "valid": valid, **sides, "alignment": "joint",
        "dose_weighted": False, "trajectory_A": None, "bin": 1, "defects": None,
        "groups": [{**about, **unit} for about, unit in zip(each, normal, strict=True)],
    }  # fmt: skip
    write_halves(folder / name, *halves, record, {}, "test", images)
    return folder / f"{name}.json"


def noisy(seed, k=4, amplitude=0.5):
    """K images of one signal, each with noise of its own."""
    clean = 40 + amplitude * field(seed, SHAPE)
    return np.stack([clean + white(100 * seed + i, SHAPE) for i in range(k)])


def write(folder, records, pairings=3, patch=64, **rest):
    settings = ShardSettings(patch=patch, pairings=pairings, **rest)
    shards_write.write_shards(records, {"val": [], "test": []}, folder, settings)
    return shards.read_manifest(folder / "manifest.json")


def change(record, **values):
    about = files.read_json(record)
    for key, value in values.items():
        about[key] = value(about[key]) if callable(value) else value
    files.write_json(record, about)


# ---------------------------------------------------------------------------- what is in the patches


def test_constant_groups_give_the_exact_sums_of_each_pairing(tmp_path):
    record = write_groups(tmp_path, "m", noisy(1))
    values = [1.0, 2.0, 4.0, 8.0]
    mrcio.write_mrc(tmp_path / "m_groups.mrc", np.array(values, np.float32)[:, None, None] * np.ones(SHAPE, "f4"), 1.5)
    for side in "ab":
        mrcio.write_mrc(tmp_path / f"m_{side}.mrc", np.full(SHAPE, 5.0 if side == "a" else 10.0, np.float32), 1.5)
    plain = {"offset": 0.0, "scale": 1.0}
    change(
        record,
        groups=lambda found: [{**group, "offset": 0.5, "scale": 0.5} for group in found],
        a=lambda found: found | plain,
        b=lambda found: found | plain,
    )
    manifest = write(tmp_path / "s", [record], max_bad=1.0)
    # (sum - 2 x 0.5) / (2 x 0.5) of two groups; the halves, with units of their own, as they are.
    wanted = {"0+2|1+3": (5, 10), "0+1|2+3": (1 + 2 - 1, 4 + 8 - 1), "0+3|1+2": (1 + 8 - 1, 2 + 4 - 1)}
    assert list(manifest["pairings"]) == list(wanted)
    arrays = [np.load(tmp_path / "s" / f"train_{side}.npy") for side in "ab"]
    assert manifest["shape"] == [18, 64, 64]
    for k, entry in enumerate(manifest["patches"]):
        assert entry["pairing"] == list(wanted)[k // 6]
        for array, value in zip(arrays, wanted[entry["pairing"]], strict=True):
            assert (array[k] == value).all()


@hypothesis_settings(deadline=None, max_examples=8)
@given(k=st.sampled_from([4, 6]), seed=st.integers(0, 99), data=st.data())
def test_patches_are_the_pairs_that_the_groups_give(tmp_path_factory, k, seed, data):
    folder = tmp_path_factory.mktemp("pairs")
    records = [write_groups(folder, f"m{i}", noisy(seed + i, k)) for i in range(2)]
    wanted = data.draw(st.integers(2, math.comb(k, k // 2) // 2))
    manifest = write(folder / "s", records, wanted, patch=96)
    array = {side: shards.open_array(folder / "s/manifest.json", manifest, side) for side in "ab"}
    assert len(manifest["pairings"]) == wanted and manifest["shape"][0] == 2 * wanted * 4
    halves = [pair.load_pair(record) for record in records]
    own = {record.stem: groups.load_groups(record) for record in records}
    for number, entry in enumerate(manifest["patches"]):
        about = manifest["pairings"][entry["pairing"]]
        sets = [about[side]["groups"] for side in "ab"]
        assert not set(sets[0]) & set(sets[1]) and sorted(sets[0] + sets[1]) == list(range(k))
        assert len(sets[0]) == len(sets[1]) and about["a"]["dose_e_per_A2"] == about["b"]["dose_e_per_A2"] == 0.75 * k
        one = halves[number // (wanted * 4)] if about["halves"] else own[entry["micrograph"]].pair(*sets)
        part = (slice(entry["y"], entry["y"] + 96), slice(entry["x"], entry["x"] + 96))
        for side in "ab":
            np.testing.assert_allclose(array[side][number], getattr(one, side)[part], rtol=1e-3, atol=2e-3)
        assert (entry["noise_var_a"], entry["noise_var_b"]) == pytest.approx(one.noise_var)
    # Each way to halve the groups once, whichever side is called a.
    ways = {frozenset(frozenset(about[side]["groups"]) for side in "ab") for about in manifest["pairings"].values()}
    assert len(ways) == wanted


def test_the_noises_of_a_pairing_are_independent_and_alike(tmp_path):
    record = write_groups(tmp_path, "m", noisy(3, amplitude=0.0))
    manifest = write(tmp_path / "s", [record], patch=128)
    a, b = (np.load(tmp_path / "s" / f"train_{side}.npy").astype(np.float64) for side in "ab")
    for k, entry in enumerate(manifest["patches"]):
        n = a[k].size
        assert abs(np.corrcoef(a[k].ravel(), b[k].ravel())[0, 1]) < 5 / np.sqrt(n), entry["pairing"]
        for x, side in ((a, "a"), (b, "b")):
            assert x[k].var() == pytest.approx(entry[f"noise_var_{side}"], rel=5 * np.sqrt(2 / n) + 0.02)


def test_the_halves_come_first_and_once_whichever_side_group_0_is_on(tmp_path):
    halves = write_groups(tmp_path / "h", "m", noisy(1))
    turned = write_groups(tmp_path / "t", "m", noisy(1), swapped=True)
    first = {}
    for record, names in ((halves, ["0+2|1+3", "0+1|2+3", "0+3|1+2"]), (turned, ["1+3|0+2", "0+1|2+3", "0+3|1+2"])):
        folder = record.parent / "s"
        manifest = write(folder, [record])
        assert list(manifest["pairings"]) == names
        assert [about["halves"] for about in manifest["pairings"].values()] == [True, False, False]
        write(record.parent / "one", [record], 1)
        for side in "ab":
            every, alone = (np.load(f / f"train_{side}.npy") for f in (folder, record.parent / "one"))
            np.testing.assert_array_equal(every[:6], alone)  # from the halves' own files
            first[record, side] = alone
    np.testing.assert_array_equal(first[halves, "a"], first[turned, "b"])


def test_the_halves_alone_are_what_they_were(tmp_path):
    """With groups or without: the same arrays, and not a key more in the manifest but the record's checksum."""
    images = noisy(1)
    with_groups = write_groups(tmp_path / "g", "m", images)
    without = write_groups(tmp_path / "w", "m", images)
    change(without, groups=None, group_stack=None)
    assert command("write-shards", "--train", with_groups, "--set", "patch=64", "--out", tmp_path / "s") == 0
    write(tmp_path / "t", [without], 1)
    one, other = (files.read_json(tmp_path / f / "manifest.json") for f in "st")
    for side in "ab":
        assert (tmp_path / f"s/train_{side}.npy").read_bytes() == (tmp_path / f"t/train_{side}.npy").read_bytes()
    for manifest in (one, other):
        del manifest["sha256"], manifest["micrographs"][0]["record_sha256"]
        assert "pairings" not in json.dumps(manifest) and "pairing" not in manifest["patches"][0]
    assert one == other


# ---------------------------------------------------------------------------- the command, the tools, training


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The manifest of shards of 2 micrographs with 3 pairings of 6 patches, written by the command; their records."""
    folder = tmp_path_factory.mktemp("whole")
    records = [write_groups(folder / "h", f"mic{i}", noisy(i)) for i in range(2)]
    settings = json.dumps({"patch": 64, "overlap": 0, "max_bad": 0.05, "masks": None, "pairings": 3})
    words = ["--val", "v", "--test", "t", "--out", folder / "s", "--settings", settings]
    assert command("write-shards", "--train", *records, *words) == 0
    return folder / "s" / "manifest.json", records


def test_the_tools_tell_of_pairings(whole, tmp_path, capsys):
    manifest, _ = whole
    assert command("shards", "verify", manifest) == 0
    assert command("shards", "info", manifest) == 0
    text = capsys.readouterr().out
    assert "pairing 0+2|1+3 12 patches, doses 3.0 and 3.0 e⁻/Å²: the halves\n" in text
    assert "pairing 0+1|2+3 12 patches, doses 3.0 and 3.0 e⁻/Å²\n" in text
    assert command("shards", "info", manifest, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["patches_of_pairing"] == {"0+2|1+3": 12, "0+1|2+3": 12, "0+3|1+2": 12}
    assert command("shards", "export", manifest, "--out", tmp_path, "--format", "npy", "--patches", "5,6,35") == 0
    rows = files.read_table(tmp_path / "patches.tsv", ["patch", "pairing"])
    assert [row["pairing"] for row in rows] == ["0+2|1+3", "0+1|2+3", "0+3|1+2"]
    every = np.load(manifest.with_name("train_a.npy"))
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), every[[5, 6, 35]])


def test_a_flipped_bit_is_found_in_a_patch_of_a_pairing(whole, tmp_path):
    for path in whole[0].parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "train_b.npy").read_bytes())
    content[4096 + 7 * 8192] ^= 1
    (tmp_path / "train_b.npy").write_bytes(content)
    (sentence,) = shards_tools.verify(tmp_path / "manifest.json")
    assert "train_b.npy: patch 7 (micrograph mic0, y 0, x 48, pairing 0+1|2+3) differs" in sentence


def test_loaders_serve_the_patches_of_all_pairings_with_their_noise(whole):
    import torch

    manifest, _ = whole
    every = {side: np.load(manifest.with_name(f"train_{side}.npy")) for side in "ab"}
    entries = files.read_json(manifest)["patches"]
    loader = loaders.open_loader(manifest, "ram", 64, 4, 0, torch.device("cpu"), 1)
    seen = set()
    for step, batch in enumerate(loader.batches(0, 9)):  # 9 x 4 whole patches: each of the 36 once
        for k, image, var in zip(loader.plan(step).patch, batch.a[:, 0], batch.var_b, strict=True):
            assert sorted(image.numpy().ravel()) == sorted(every["a"][k].ravel())
            assert float(var) == pytest.approx(entries[k]["noise_var_b"], rel=1e-6)
            seen.add(int(k))
    assert seen == set(range(36))


def changed(whole, folder, edit):
    manifest = files.read_json(whole[0])
    del manifest["sha256"]
    edit(manifest)
    shards.write_manifest(folder / "manifest.json", manifest)
    with pytest.raises(InputError) as caught:
        shards.read_manifest(folder / "manifest.json", arrays=False)
    return str(caught.value)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m["pairings"]["0+1|2+3"]["b"].update(groups=[1, 3]), "a has the groups [0, 1], b [1, 3]; wanted"),
        (lambda m: m["pairings"]["0+1|2+3"]["b"].pop("groups"), "misses the key 'pairings: 0+1|2+3: b: groups'"),
        (lambda m: m["patches"][3].update(pairing="0+2"), "patches: 3: pairing is '0+2'; wanted 0+2|1+3 or"),
        (lambda m: m["patches"][3].pop("pairing"), "patches: 3: pairing is None; wanted"),
        (lambda m: m["patches"][3].update(micrograph="t"), "is in test; wanted micrographs of train alone"),
        (lambda m: m.update(pairings=[1]), "pairings is no mapping"),
    ],
)
def test_a_manifest_of_pairings_that_cannot_be_is_refused(whole, tmp_path, edit, says):
    assert says in changed(whole, tmp_path, edit)


# ---------------------------------------------------------------------------- bad areas, masks, resuming


def test_bad_areas_are_looked_for_in_each_pairing(tmp_path):
    images = noisy(1)
    images[0:2, :64, :48] = 7.0  # dead in groups 0 and 1: their sum is, the halves' sums are not
    manifest = write(tmp_path / "s", [write_groups(tmp_path, "m", images)])
    (about,) = manifest["micrographs"]
    assert about["left_out"] == [[0, 0, 0.75, "0+1|2+3"]] and manifest["left_out"] == 1
    assert about["patches"] == 17 and manifest["shape"][0] == 17
    good = np.ones(SHAPE, np.uint8)
    good[:64, :64] = 0
    mrcio.write_mrc(tmp_path / "masks/m.mrc", good, 1.5)
    masked = write(tmp_path / "t", [tmp_path / "m.json"], masks=str(tmp_path / "masks"))
    # The mask counts in each: all of the patch at x 0, columns 48 to 63 of the one at x 48.
    assert [entry[3] for entry in masked["micrographs"][0]["left_out"]] == [n for n in masked["pairings"] for _ in "xx"]
    assert {tuple(entry[:3]) for entry in masked["micrographs"][0]["left_out"]} == {(0, 0, 1.0), (0, 48, 0.25)}


def test_a_run_that_was_killed_goes_on_and_another_stack_is_not_taken_for_the_one_before(tmp_path):
    records = [write_groups(tmp_path / "h", f"m{i}", noisy(i)) for i in range(3)]
    write(tmp_path / "whole", records)
    real, written = shards_write.write_micrograph, []

    def stop(task, index, *rest):
        if index == 2 and len(written) < 3:
            raise KeyboardInterrupt
        entry, known = real(task, index, *rest)
        written.append((index, known))
        return entry, known

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_write, "write_micrograph", stop)
        settings = (tmp_path / "s", ShardSettings(64, pairings=3), 1)
        with pytest.raises(KeyboardInterrupt):
            shards_write.write_shards(records, {"val": [], "test": []}, *settings)
        stack = tmp_path / "h" / "m1_groups.mrc"
        stack.write_bytes(stack.read_bytes())  # another time
        patch.setattr(shards_write, "write_micrograph", lambda *a: (written.append((a[1], None)), real(*a))[1])
        shards_write.write_shards(records, {"val": [], "test": []}, *settings)
    assert written == [(0, False), (1, False), (0, None), (1, None), (2, None)]
    for name in ("train_a.npy", "train_b.npy", "manifest.json"):
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ---------------------------------------------------------------------------- what is refused


def drop(*keys):
    return lambda record: change(record, **dict.fromkeys(keys))


@pytest.mark.parametrize(
    ("edit", "pairings", "says"),
    [
        (drop("groups", "group_stack"), 3, "its halves were made without groups of frames"),
        (drop("group_stack"), 3, "its halves were made without groups of frames"),
        (lambda r: change(r, groups=lambda g: g[:3]), 3, "has 3 groups of frames, an odd number"),
        (lambda r: change(r, groups=lambda g: g[:2]), 3, "2 groups of frames make 1 pairing; shards: pairings wants 3"),
        (lambda r: None, 4, "4 groups of frames make 3 pairings; shards: pairings wants 4"),
        (lambda r: change(r, a=lambda a: a | {"frames": [0, 1, 4, 6]}), 2, "its halves' frames are not those of half"),
        (lambda r: change(r, a=lambda a: a | {"frames": None}), 2, "its halves' frames are not those of half"),
    ],
)
def test_halves_that_give_no_pairings_are_refused_in_a_sentence(tmp_path, capsys, edit, pairings, says):
    record = write_groups(tmp_path, "m", noisy(1))
    edit(record)
    words = ["--set", "patch=64", "--set", f"pairings={pairings}", "--out", tmp_path / "s"]
    assert command("write-shards", "--train", record, *words) == 2
    said = capsys.readouterr().err
    assert f"{record}: " in said and says in said and not (tmp_path / "s").exists()
    assert command("write-shards", "--train", record, "--set", "patch=64", "--out", tmp_path / "one") == 0


def test_stacks_that_are_not_those_of_the_record_and_mixed_groups_are_refused(tmp_path):
    record = write_groups(tmp_path, "m", noisy(1))
    other = write_groups(tmp_path, "o", noisy(2, k=6))
    with pytest.raises(InputError, match=r"whose halves are 0\+2\+4\|1\+3\+5 and 0\+2\|1\+3; wanted one kind"):
        write(tmp_path / "s", [record, other])
    stack = tmp_path / "m_groups.mrc"
    mrcio.write_mrc(stack, noisy(1)[:3].astype(np.float32), 1.5)
    with pytest.raises(InputError, match=r"m_groups\.mrc: holds 3 x 128 x 160 pixels, but its record m\.json says 4 x"):
        write(tmp_path / "s", [record])
    mrcio.write_mrc(stack, noisy(1).astype(np.float32), 1.5)
    np.memmap(stack, np.float32, "r+", 1024, (4, *SHAPE))[3, 5, 5] = np.nan
    with pytest.raises(InputError, match=r"m_groups\.mrc: NaN, infinity"):
        write(tmp_path / "s", [record])
    assert list((tmp_path / "s").iterdir()) == []
    stack.unlink()
    with pytest.raises(InputError, match=r"m_groups\.mrc: no such file"):
        write(tmp_path / "s", [record])
    with pytest.raises(InputError, match="pairings 0; wanted 1"):
        ShardSettings(pairings=0)


def test_most_pairings_is_the_number_that_there_is():
    for k in (2, 4, 6, 8):
        (record,) = ({"groups": [{"frames": [i]} for i in range(k)], "group_stack": {"file": "x"}} for _ in "x")
        about = {"n_frames": 1, "dose_e_per_A2": None, "offset": 0.0, "scale": 1.0, "noise_var": 1.0}
        record["groups"] = [group | about for group in record["groups"]]
        record |= {"a": {"frames": list(range(0, k, 2))}, "b": {"frames": list(range(1, k, 2))}}
        most = {2: 1, 4: 3, 6: 10, 8: 35}[k]
        assert len(shards_pairings.pairings("r.json", record, most)) == most
        with pytest.raises(InputError, match=f"make {most} pairing"):
            shards_pairings.pairings("r.json", record, most + 1)


# ---------------------------------------------------------------------------- the plan


def test_the_plan_counts_pairings_and_warns_where_there_are_too_few_groups():
    config = plan.load_config(ROOT / "tests/workflow/tiny.yaml", ROOT / "workflow/schemas/config.schema.yaml")
    config["source"]["phantom"]["shape"], config["source"]["n_micrographs"] = [128, 128], 8
    config["split"] |= {"val": 1, "test": 1}
    config["shards"] |= {"patch": 64, "overlap": 0}
    for pairings, n_groups, patches, warned in ((1, 4, 24, False), (3, 4, 72, False), (3, 2, 72, True)):
        config["shards"]["pairings"], config["halves"]["groups"] = pairings, n_groups
        text = plan.plan_text(config)
        # Six training micrographs of 2 x 2 patches; each takes 2 x 64 x 64 x 2 bytes.
        line = f"{patches * 2 * 64 * 64 * 2 / 1e9:.2f} GB: {patches} patches of 64 px, two sides, float16"
        assert line + (f", {pairings} pairings" if pairings > 1 else "") + "\n" in text
        assert ("WARNING: shards: pairings 3 cannot be had: halves: groups 2 makes 1" in text) is warned
