"""An EMPIAR entry: what its API says of it, and which of its image sets can train Noise2Noise.

The API (https://www.ebi.ac.uk/empiar/api/entry/10025/) tells what is in an entry but no file names, exact
sizes or checksums.  Its fields vary from entry to entry: numbers as strings, null, missing keys, categories in
words or as the codes of EMPIAR's deposition schema.  All text of it is made `printable` as it is read.
"""

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from cryon2n import log
from cryon2n.empiar_codes import CATEGORY_CODES, FORMAT_CODES, VOXEL_CODES
from cryon2n.errors import InputError
from cryon2n.listing import fetch_text
from cryon2n.movie_header import Geometry
from cryon2n.movie_sheet import entry_number, printable
from cryon2n.names import is_safe_name
from cryon2n.web import FetchSettings, integer, open_session

BASE_API = "https://www.ebi.ac.uk/empiar/api/entry"
BASE_DATA = "https://ftp.ebi.ac.uk/empiar/world_availability"
DETAILS_LIMIT = 400  # characters of a depositor's remarks that `show` prints

# A word of the category, and why such a set cannot be used; the first that is found counts, so that
# "picked particles - multiframe" are particles.
UNUSABLE = {
    "particle": "picked particles, boxes cut out of micrographs; whole movies are wanted",
    "subtomogram": "subtomograms, volumes cut out of tomograms; movies are wanted",
    "volume": "reconstructed volumes, the result of a reconstruction; movies are wanted",
    "class average": "class averages, means over many particles; movies are wanted",
    "stitched": "stitched maps, mosaics of neighbouring images; movies are wanted",
    "diffraction": "diffraction images, which show no specimen in real space; movies are wanted",
    "tilt": "tilt series (tomography), one view per tilt and no two halves of the same view",
    "tomogra": "tomography, one view per tilt and no two halves of the same view",
    "focal pair": "focal pairs, two exposures at different defocus and dose and no two halves of one exposure",
}
# Experiments whose images are no transmission micrographs: SBF-SEM, FIB-SEM, soft or hard X-ray tomography.
OTHER_EXPERIMENT = re.compile(r"\bSEM\b|\bSXT\b|x-?ray", re.IGNORECASE)
HALVES_HINT = re.compile(r"(^|[^a-z])(evn|even|odd)([^a-z]|$)", re.IGNORECASE)
ALIGNED_HINT = re.compile(r"align|motion|drift", re.IGNORECASE)


@dataclass(frozen=True)
class ImageSet:
    """An image set as the API describes it; None or an empty text where it does not.

    Attributes
    ----------
    name, category, format, voxel_type, details : str
    folder : str
        Under the entry's folder, without slashes at the ends.  Not checked: see `set_folder`.
    images : int or None
    geometry : Geometry
        Frames per image, height and width in pixels, data type.
    pixel_size : float or None
        In Å, as deposited, which is often rounded.
    """

    name: str
    folder: str
    category: str
    format: str
    images: int | None
    geometry: Geometry
    voxel_type: str
    pixel_size: float | None
    details: str

    @property
    def pixel_bytes(self) -> float | None:
        """Bytes of an uncompressed pixel."""
        bits = re.search(r"[0-9]+$", self.geometry.data_type or "")
        return int(bits[0]) / 8 if bits else None

    @property
    def image_bytes(self) -> float | None:
        """Bytes of an uncompressed image of all its frames, computed, without its header."""
        g = self.geometry
        factors = (g.frames, g.h, g.w, self.pixel_bytes)
        return None if None in factors else g.frames * g.h * g.w * self.pixel_bytes


@dataclass(frozen=True)
class Entry:
    """What the API says of an entry; empty texts where it says nothing."""

    number: str
    title: str
    doi: str
    dates: dict[str, str]  # deposited, released, updated
    status: str
    size: str
    experiment: str
    cross_references: tuple[str, ...]
    image_sets: tuple[ImageSet, ...]


@dataclass(frozen=True)
class Verdict:
    """Whether a set can be used (None: only its files can tell), and why, in words."""

    usable: bool | None
    why: str


# Reading


def read_entry(text: str, entry: str | int, where: str) -> Entry:
    """Return what the text of an API reply, whose one key is the accession, says of `entry`."""
    try:
        reply = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: the reply is not JSON ({error}); check --base-api") from None
    number = entry_number(entry)
    for key in (f"EMPIAR-{number}", number):
        if isinstance(reply, dict) and isinstance(reply.get(key), dict):
            return _entry_of(reply[key], number)
    raise InputError(f"{where}: the reply holds no entry EMPIAR-{number}; check the accession and --base-api")


def _entry_of(about: dict[str, Any], number: str) -> Entry:
    dates = {"deposited": "deposition_date", "released": "release_date", "updated": "update_date"}
    references = about.get("cross_references")
    sets = about.get("imagesets")
    size = integer(about.get("dataset_size"))
    return Entry(
        number=number,
        title=_text(about.get("title")),
        doi=_text(about.get("entry_doi")),
        dates={word: _text(about[key]) for word, key in dates.items() if about.get(key)},
        status=_text(about.get("status")),
        size=f"{size / 1e9:.1f} GB" if size else _text(about.get("dataset_size")),
        experiment=_text(about.get("experiment_type")),
        cross_references=tuple(
            _text(r.get("name") if isinstance(r, dict) else r)
            for r in (references if isinstance(references, list) else [])
        ),
        image_sets=tuple(_image_set_of(s) for s in (sets if isinstance(sets, list) else []) if isinstance(s, dict)),
    )


def _image_set_of(about: dict[str, Any]) -> ImageSet:
    voxel_type = _decoded(about.get("voxel_type"), VOXEL_CODES)
    # 0 stands for "not said".
    frames, h, w = (integer(about.get(k)) or None for k in ("frames_per_image", "image_height", "image_width"))
    return ImageSet(
        name=_text(about.get("name")),
        folder=_text(about.get("directory")).strip("/"),
        category=_decoded(about.get("category"), CATEGORY_CODES),
        format=_decoded(about.get("data_format") or about.get("header_format"), FORMAT_CODES).upper(),
        images=integer(about.get("num_images_or_tilt_series")) or None,
        geometry=Geometry(frames, h, w, data_type_of(voxel_type)),
        voxel_type=voxel_type,
        pixel_size=_positive(about.get("pixel_width")),
        details=_text(about.get("details")),
    )


def _text(value: Any) -> str:
    return "" if value is None else printable(value)


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 < number < 1e9 else None


def _decoded(value: Any, codes: dict[str, str]) -> str:
    """Return the words of a field: from words, from ``T2``, ``('T2', '')`` or ``('OT', 'other words')``."""
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(_text, value))
    text = _text(value)
    match = re.fullmatch(r"""\(?\s*['"]?(T[0-9]{1,2}|OT)['"]?\s*(?:,\s*['"]?(.*?)['"]?\s*)?\)?""", text)
    return codes.get(match[1], match[2] or match[1]) if match else text


def data_type_of(voxel_type: str) -> str | None:
    """Return the data type that EMPIAR's words mean (``UNSIGNED BYTE`` → ``uint8``), None if they are unknown."""
    text = voxel_type.upper()
    found = re.search(r"([0-9]+)[\s-]*BIT", text)
    bits = 8 if "BYTE" in text else int(found[1]) if found else 0
    if "FLOAT" in text:
        return f"float{bits}" if bits in (16, 32, 64) else None
    if bits == 4:
        return "uint4"
    sign = re.search(r"(UN)?SIGNED", text)
    return f"{'u' if sign[1] else ''}int{bits}" if sign and bits in (8, 16, 32) else None


# Judging


def judge(image_set: ImageSet, entry: Entry) -> Verdict:
    """Tell whether halves for Noise2Noise can be made from an image set."""
    category = re.sub(r"[\s_-]+", " ", image_set.category.lower())
    for word, why in UNUSABLE.items():
        if word in category:
            return Verdict(False, why)
    if OTHER_EXPERIMENT.search(entry.experiment):
        return Verdict(False, f"images of another kind of microscopy ({entry.experiment}); movies are wanted")
    frames, said = image_set.geometry.frames, image_set.category or "nothing"
    multi, single = bool(re.search(r"multi ?frame", category)), "single frame" in category
    if multi and frames != 1:
        return Verdict(True, _movies_text(image_set, entry))
    if single and frames in (None, 1):
        hint = ""
        if HALVES_HINT.search(f"{image_set.name} {image_set.folder} {image_set.details}"):
            hint = "; it seems to hold even and odd halves (EVN, ODD), which can be used: source: kind: halves"
        return Verdict(False, f"averaged, one image per exposure, from which no halves can be made{hint}")
    number = "an unknown number of" if frames is None else str(frames)
    return Verdict(
        None,
        f"the category says {said!r} and the entry gives {number} frames per image; "
        "name the set with --image-set, and the files' headers decide",
    )


def _movies_text(image_set: ImageSet, entry: Entry) -> str:
    frames = image_set.geometry.frames
    words = [f"movies of {frames} frames" if frames else "movies (the entry does not say of how many frames)"]
    words.append("which can be split for Noise2Noise")
    if (image_set.pixel_bytes or 0) >= 4:
        aligned = ALIGNED_HINT.search(f"{image_set.name} {image_set.folder} {image_set.details}")
        # The comparison is with the same exposures in a smaller type, or else with counts of one byte.
        others = [
            s
            for s in entry.image_sets
            if s.geometry.frames == frames and s.images == image_set.images and 0 < (s.pixel_bytes or 0) < 4
        ]
        than, least = (repr(others[0].name), others[0].pixel_bytes) if others else ("counts of one byte", 1)
        kind = "aligned already, " if aligned else ""
        words.append(
            f"but {kind}in {image_set.geometry.data_type}: {image_set.pixel_bytes / least:g} times the bytes of {than}"
        )
    return ", ".join(words)


def choose_image_set(entry: Entry, name: str | None) -> ImageSet:
    """Return the image set with that name or folder, or without a name the first that can be used.

    Raises
    ------
    InputError
        There is no such set, or it (or every one) holds no movies.
    """
    where = f"EMPIAR-{entry.number}"
    listed = "; ".join(f"{s.name!r}: {judge(s, entry).why}" for s in entry.image_sets) or "none"
    if name is None:
        for image_set in entry.image_sets:
            if judge(image_set, entry).usable:
                return image_set
        raise InputError(
            f"{where}: holds no image set that is known to be of movies (it has {listed}); choose another entry"
        )
    named = [s for s in entry.image_sets if s.name == printable(name)]
    found = named or [s for s in entry.image_sets if s.folder == name.strip("/")]
    if len(found) > 1:
        raise InputError(
            f"{where}: {len(found)} image sets are called {name!r}; "
            f"give the folder of one as --image-set ({', '.join(repr(s.folder) for s in found)})"
        )
    if not found:
        names = ", ".join(repr(s.name) for s in entry.image_sets) or "none"
        raise InputError(f"{where}: image sets are {names}, found --image-set {name!r}; choose one of them")
    verdict = judge(found[0], entry)
    if verdict.usable is False:
        raise InputError(f"{where}: image set {found[0].name!r} cannot be used: it holds {verdict.why}; choose another")
    if verdict.usable is None:
        log.say(f"image set {found[0].name!r}: {verdict.why}")
    return found[0]


def set_folder(image_set: ImageSet, where: str) -> str:
    """Return an image set's folder, relative to the entry and without slashes at the ends, if it is safe."""
    if not all(map(is_safe_name, image_set.folder.split("/"))):
        raise InputError(f"{where}: the folder {image_set.folder!r} is not a safe relative path")
    return image_set.folder


# Telling


def describe_entry(entry: Entry) -> str:
    """Return what `cryon2n empiar show` prints: the entry, its image sets, and how to get those of use."""
    dates = [f"{word} {date}" for word, date in entry.dates.items()]
    head = {
        "DOI": entry.doi,
        "dates": ", ".join(dates) + (f" (status {entry.status})" if entry.status else ""),
        "size": entry.size and f"{entry.size} in all, as the entry says",
        "experiment": entry.experiment,
        "references": ", ".join(entry.cross_references),
    }
    lines = [f"EMPIAR-{entry.number}: {entry.title or 'without a title'}", *_columns(head)]
    verdicts = [judge(s, entry) for s in entry.image_sets]
    for image_set, verdict in zip(entry.image_sets, verdicts, strict=True):
        lines += ["", f"Image set {image_set.name!r}", *_columns(_image_set_texts(image_set, verdict))]
    if not entry.image_sets:
        lines += ["", "The API gives no image sets of it."]
    lines += ["", "Pixel sizes are as deposited and often rounded (0.66 Å in EMPIAR-10025, calibrated 0.6575 Å):"]
    lines += ["the calibrated value belongs into the config (halves: pixel_size_A)."]
    for image_set, verdict in zip(entry.image_sets, verdicts, strict=True):
        if verdict.usable:
            lines += ["", *_commands(image_set, entry.number)]
    return "\n".join(lines) + "\n"


def _columns(texts: dict[str, str]) -> list[str]:
    return [f"  {name:<11} {text}" for name, text in texts.items() if text]


def _image_set_texts(image_set: ImageSet, verdict: Verdict) -> dict[str, str]:
    g = image_set.geometry
    voxels = image_set.voxel_type + (f" ({g.data_type})" if g.data_type else "")
    facts = [
        "an unknown number" if image_set.images is None else str(image_set.images),
        f"{g.frames or '?'} frame{'' if g.frames == 1 else 's'} each",
        f"{g.w or '?'} x {g.h or '?'} pixels (width x height)",
        f"{image_set.pixel_size:g} Å per pixel" if image_set.pixel_size else "pixel size unknown",
    ]
    one, size = image_set.image_bytes, "unknown"
    if one is not None:
        size = f"{one / 1e9:.3g} GB each"
        size += f", {one * image_set.images / 1e9:.4g} GB in all" if image_set.images else ""
        size += " (computed from these numbers, uncompressed)"
    details = image_set.details
    return {
        "folder": image_set.folder or "unknown",
        "category": image_set.category or "unknown",
        "format": ", ".join(filter(None, (image_set.format, voxels))) or "unknown",
        "images": ", ".join(facts),
        "size": size,
        "Noise2Noise": f"{ {True: 'yes', False: 'no', None: 'perhaps'}[verdict.usable] }: {verdict.why}",
        "details": details[:DETAILS_LIMIT] + ("…" if len(details) > DETAILS_LIMIT else ""),
    }


def _commands(image_set: ImageSet, number: str) -> list[str]:
    """Return how to get an image set: by this program, or in bulk by programs that the user has."""
    try:
        folder = set_folder(image_set, "")
    except InputError:  # it would stand in a shell command
        return [f"The folder of {image_set.name!r} holds characters that are not safe in a command: fetch it by hand."]
    last, path = folder.split("/")[-1], f"/gridftp/empiar/world_availability/{number}/{folder}/"
    name = shlex.quote(image_set.name)
    return [
        f"To fetch {image_set.name!r}, movie by movie as a workflow needs them:",
        f"  cryon2n empiar sheet {number} --image-set {name} > config/movies/empiar-{number}.tsv",
        "or the whole folder, by one of these (they are not run for you):",
        "  Aspera; the key comes with your Aspera client, whose folder may be another one:",
        "    ascp -QT -k 1 -P 33001 -i ~/.aspera/connect/etc/asperaweb_id_dsa.openssh "
        f"emp_ext3@fasp.ebi.ac.uk:/{number}/{folder} .",
        f'  Globus; collection "Shared EMBL-EBI public endpoint", path {path}, or on a command line:',
        '    globus endpoint search "EMBL-EBI public endpoint"   # prints the collection\'s ID',
        f"    globus transfer --recursive ID:{path} YOUR_ID:/PATH/{last}/",
        "  then in the config:",
        f"    source: {{kind: movies, sheet: /PATH/{last}}}",
    ]


# Asking


def fetch_entry(entry: str | int, base_api: str, settings: FetchSettings) -> Entry:
    """Ask the API for an entry."""
    number = entry_number(entry)
    api = f"{base_api.rstrip('/')}/{number}/"
    with open_session(api) as session:
        return read_entry(fetch_text(session, api, settings), number, api)
