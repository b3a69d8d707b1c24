"""What an EMPIAR entry says of itself, and what of it can be used, from replies of all shapes."""

import json

import pytest

from cryon2n.empiar import choose_image_set, data_type_of, describe_entry, judge, read_entry, set_folder
from cryon2n.errors import InputError
from cryon2n.movie_header import Geometry
from faultserver import serve

MOVIES = {
    "name": "Raw movies",
    "directory": "/data/raw",
    "category": "micrographs - multiframe",
    "data_format": "MRC",
    "num_images_or_tilt_series": 10,
    "frames_per_image": 8,
    "voxel_type": "UNSIGNED BYTE",
    "pixel_width": 0.66,
    "image_width": "5000",
    "image_height": "4000",
    "details": None,
}
ABOUT = {
    "title": "T20S\nat 2.8 Å",
    "entry_doi": "10.6019/EMPIAR-10025",
    "deposition_date": "2015-02-26",
    "release_date": None,
    "dataset_size": "2.0 TB",
    "experiment_type": "EMDB",
    "cross_references": ["EMD-6287", {"name": "EMD-1"}],
}


def entry(*image_sets, **about):
    return read_entry(json.dumps({"EMPIAR-10025": {**ABOUT, "imagesets": image_sets, **about}}), 10025, "the-api")


def verdict(experiment="EMDB", **changes):
    one = entry({**MOVIES, **changes}, experiment_type=experiment)
    return judge(one.image_sets[0], one)


# Replies


@pytest.mark.parametrize("text", ["<html>", "[]", '{"EMPIAR-10026": {}}', '{"EMPIAR-10025": null}', "[" * 100_000])
def test_replies_that_are_no_entry(text):
    with pytest.raises(InputError, match="the-api"):
        read_entry(text, 10025, "the-api")


@pytest.mark.parametrize("key", ["EMPIAR-10025", "10025"])
@pytest.mark.parametrize(
    "about",
    [
        {},
        {"imagesets": None, "cross_references": None, "title": None, "dataset_size": None},
        {"imagesets": "none", "cross_references": "EMD-1"},
        {"imagesets": [None, 3, {}]},
        {"imagesets": [{k: None for k in MOVIES}]},
        {"imagesets": [{k: [] for k in MOVIES}]},
        {"imagesets": [{k: "x" for k in MOVIES}]},
    ],
)
def test_entries_that_say_little_are_shown_and_refused(key, about):
    one = read_entry(json.dumps({key: about}), "EMPIAR-10025", "the-api")
    assert describe_entry(one).startswith("EMPIAR-10025: ")
    assert all(judge(s, one).usable is not True for s in one.image_sets)
    with pytest.raises(InputError, match="holds no image set that is known to be of movies"):
        choose_image_set(one, None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"directory": "data/raw/", "num_images_or_tilt_series": "10", "frames_per_image": "8", "image_width": 5000},
        {"category": "('T2', '')", "data_format": "('T1', '')", "voxel_type": "('T1', '')"},
        {"category": ["T2", ""], "data_format": "T1", "voxel_type": ["T1", None]},
        {"category": "Micrographs - Multiframe", "data_format": None, "header_format": "mrc"},
        {"category": "micrographs — multi-frame", "pixel_width": "0.66", "voxel_type": "unsigned byte"},
    ],
    ids=range(6),
)
def test_api_varies(changes):
    one = entry({**MOVIES, **changes})
    found = choose_image_set(one, None)
    assert (found.folder, found.images, found.format, found.pixel_size) == ("data/raw", 10, "MRC", 0.66)
    assert found.geometry == Geometry(8, 4000, 5000, "uint8")
    assert judge(found, one).usable


@pytest.mark.parametrize(
    ("words", "type_"),
    [
        ("UNSIGNED BYTE", "uint8"),
        ("SIGNED BYTE", "int8"),
        ("UNSIGNED 16 BIT INTEGER", "uint16"),
        ("SIGNED 16 BIT INTEGER", "int16"),
        ("signed 32-bit integer", "int32"),
        ("32 BIT FLOAT", "float32"),
        ("16 BIT FLOAT", "float16"),
        ("4 BIT INTEGER", "uint4"),
        ("UNSIGNED 4-BIT INTEGER", "uint4"),
        ("BIT", None),
        ("16 BIT INTEGER", None),
        ("", None),
    ],
)
def test_voxel_types(words, type_):
    assert data_type_of(words) == type_


# Verdicts


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        ("T1", "micrographs - single frame", "averaged, one image per exposure, from which no halves can be made"),
        ("T3", "micrographs - focal pairs - unprocessed", "focal pairs"),
        ("T4", "micrographs - focal pairs - contrast inverted", "focal pairs"),
        ("T5", "picked particles - single frame - unprocessed", "picked particles"),
        ("T6", "picked particles - multiframe - unprocessed", "picked particles"),
        ("T7", "picked particles - single frame - processed", "picked particles"),
        ("T8", "picked particles - multiframe - processed", "picked particles"),
        ("T9", "tilt series", "tilt series (tomography)"),
        ("T10", "class averages", "class averages"),
        ("T11", "stitched maps", "stitched maps"),
        ("T12", "diffraction images", "diffraction images"),
        ("T13", "reconstructed volumes", "reconstructed volumes"),
        ("T14", "subtomograms", "subtomograms"),
    ],
)
def test_sets_that_are_refused_by_name(code, words, says):
    for category in (words, words.upper(), f"('{code}', '')"):
        for frames in (1, None) if code == "T1" else (8, 1, None):
            one = verdict(category=category, frames_per_image=frames)
            assert one.usable is False
            assert says in one.why
    one = entry({**MOVIES, "category": words, "frames_per_image": 1})
    with pytest.raises(InputError, match=r"cannot be used: it holds .*; choose another"):
        choose_image_set(one, "Raw movies")
    with pytest.raises(InputError, match=r"'Raw movies': .*choose another entry"):
        choose_image_set(one, None)


def test_movies_can_be_split():
    assert verdict().usable
    assert "movies of 8 frames" in verdict().why
    assert verdict(frames_per_image=0).usable  # EMPIAR's way to say nothing
    assert verdict(frames_per_image=2).usable


@pytest.mark.parametrize(
    "changes",
    [
        {"frames_per_image": 1},
        {"category": "micrographs - single frame"},
        {"category": "('OT', 'holograms')"},
        {"category": None},
    ],
)
def test_contradictions_are_left_to_the_files(changes):
    assert verdict(**changes).usable is None
    one = entry({**MOVIES, **changes})
    with pytest.raises(InputError, match="--image-set"):
        choose_image_set(one, None)
    assert choose_image_set(one, "Raw movies").folder == "data/raw"


def test_own_words_for_other_categories_are_shown():
    assert "'holograms'" in verdict(category="('OT', 'holograms')").why


@pytest.mark.parametrize("experiment", ["SBF-SEM", "FIB-SEM", "SXT", "soft X-ray tomography"])
def test_other_microscopies_are_refused(experiment):
    one = verdict(experiment)
    assert one.usable is False and experiment in one.why
    assert verdict("EMDB").usable


@pytest.mark.parametrize("where", ["name", "directory", "details"])
def test_even_and_odd_halves_are_pointed_out(where):
    averaged = {"category": "micrographs - single frame", "frames_per_image": 1}
    assert "source: kind: halves" in verdict(**averaged, **{where: "data/sums_EVN"}).why
    assert "kind: halves" not in verdict(**averaged, **{where: "data/modified_eleven"}).why


def test_bytes_of_aligned_floats():
    aligned = {**MOVIES, "name": "Aligned", "voxel_type": "32 BIT FLOAT", "directory": "data/aligned"}
    one = entry(MOVIES, aligned)
    assert judge(one.image_sets[1], one).why.endswith("aligned already, in float32: 4 times the bytes of 'Raw movies'")
    one = entry(
        {**MOVIES, "voxel_type": "UNSIGNED 16 BIT INTEGER"}, {**aligned, "name": "Floats", "directory": "data/f"}
    )
    assert judge(one.image_sets[1], one).why.endswith("but in float32: 2 times the bytes of 'Raw movies'")
    one = entry(aligned)
    assert judge(one.image_sets[0], one).why.endswith("4 times the bytes of counts of one byte")


# Choosing


def test_image_set_that_is_not_there():
    with pytest.raises(InputError, match="image sets are 'Raw movies', found --image-set 'Raw'"):
        choose_image_set(entry(MOVIES), "Raw")


def test_sets_are_chosen_by_name_or_folder():
    second = {**MOVIES, "directory": "/data/second"}
    one = entry({**MOVIES, "category": "tilt series"}, second)
    assert choose_image_set(one, None).folder == "data/second"
    assert choose_image_set(one, "/data/second/").folder == "data/second"
    with pytest.raises(InputError, match=r"2 image sets are called 'Raw movies'.*'data/raw', 'data/second'"):
        choose_image_set(one, "Raw movies")


@pytest.mark.parametrize("directory", ["../../etc", "data/../..", "data//raw", "da ta", "", None, "data/$(id)"])
def test_unsafe_folder_of_an_image_set(directory):
    one = entry({**MOVIES, "directory": directory})
    with pytest.raises(InputError, match="folder"):
        set_folder(one.image_sets[0], "api")
    # Nor does it stand in a command that a user might copy.
    text = describe_entry(one)
    assert "ascp" not in text and "globus" not in text and "not safe in a command" in text


# Showing


def test_what_is_shown():
    averaged = {**MOVIES, "name": "Averages", "category": "micrographs - single frame", "frames_per_image": 1}
    lines = describe_entry(entry(MOVIES, averaged)).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert lines[0] == "EMPIAR-10025: T20S at 2.8 Å"
    assert "DOI 10.6019/EMPIAR-10025\ndates deposited 2015-02-26\nsize 2.0 TB in all" in text
    assert "references EMD-6287, EMD-1" in text
    assert (
        "Image set 'Raw movies'\nfolder data/raw\ncategory micrographs - multiframe\nformat MRC, UNSIGNED BYTE" in text
    )
    assert "images 10, 8 frames each, 5000 x 4000 pixels (width x height), 0.66 Å per pixel" in text
    # 8 x 4000 x 5000 bytes
    assert "size 0.16 GB each, 1.6 GB in all (computed" in text
    assert "Noise2Noise yes: movies of 8 frames" in text
    assert "images 10, 1 frame each" in text
    assert "Noise2Noise no: averaged" in text
    assert "calibrated 0.6575 Å" in text


def test_bulk_commands_are_those_of_the_usable_sets():
    text = describe_entry(entry(MOVIES, {**MOVIES, "name": "Boxes", "category": "T5", "directory": "data/boxes"}))
    assert (
        "    ascp -QT -k 1 -P 33001 -i ~/.aspera/connect/etc/asperaweb_id_dsa.openssh "
        "emp_ext3@fasp.ebi.ac.uk:/10025/data/raw .\n"
    ) in text
    path = "/gridftp/empiar/world_availability/10025/data/raw/"
    assert f'"Shared EMBL-EBI public endpoint", path {path}' in text
    assert f"    globus transfer --recursive ID:{path} YOUR_ID:/PATH/raw/\n" in text
    assert "source: {kind: movies, sheet: /PATH/raw}" in text
    assert text.count("ascp") == 1 and ":/10025/data/boxes" not in text


def test_names_are_quoted_in_commands():
    text = describe_entry(entry({**MOVIES, "name": "x'; rm -rf ~ #"}))
    assert """--image-set 'x'"'"'; rm -rf ~ #' >""" in text


def test_nothing_of_the_server_reaches_the_terminal_raw():
    evil = "a\x1b[2J\x07\r\n\x9b1m\u202eb"
    about = {key: evil for key in (*ABOUT, "update_date", "status") if key != "cross_references"}
    image_set = {k: evil for k in MOVIES}
    text = describe_entry(entry(image_set, {**MOVIES, "name": evil}, **about, cross_references=[evil]))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "a [2J 1m b" in text
    with pytest.raises(InputError) as error:
        choose_image_set(entry(image_set), None)
    assert str(error.value).isprintable()


def test_the_entry_as_its_api_gives_it(shared_data):
    one = read_entry((shared_data / "empiar-10025" / "10025.json").read_text(), 10025, "api")
    chosen = choose_image_set(one, None)
    assert (chosen.name, set_folder(chosen, "api")) == ("Raw movies", "data/14sep05c_raw_196")
    assert chosen.geometry == Geometry(38, 7676, 7420, "uint8")
    assert [judge(s, one).usable for s in one.image_sets] == [True, False, True]
    assert one.cross_references == ("EMD-6287",)
    text = describe_entry(one)
    # 38 x 7676 x 7420 bytes, and 196 of them; the aligned ones in 4 bytes
    assert "2.16 GB each, 424.2 GB in all" in text and "8.66 GB each, 1697 GB in all" in text
    assert "aligned already, in float32: 4 times the bytes of 'Raw movies'" in text


# The command


def test_show_command(cryon2n):
    with serve() as site:
        site.contents["/api/10025/"] = json.dumps({"EMPIAR-10025": {**ABOUT, "imagesets": [MOVIES]}}).encode()
        site.faults = [("status", 503), ("drop", 50)]
        patience = ["--set", "backoff=0.01"]
        done = cryon2n("empiar", "show", "EMPIAR-10025", "--base-api", f"{site.base}/api", *patience)
        assert done.stdout.startswith("EMPIAR-10025: T20S at 2.8 Å\n")
        assert len(site.asked) == 3
        done = cryon2n("empiar", "show", "10026", "--base-api", f"{site.base}/api", check=False)
    assert done.returncode == 2
    assert "404" in done.stderr and "Traceback" not in done.stderr
    for arguments in (["show", "EMD-6287"], ["show", "10025", "--base-api", "http://example.com"], []):
        done = cryon2n("empiar", *arguments, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
