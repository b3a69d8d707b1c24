"""Damage files at random and read them: ``python fuzz_frames.py FORMAT N SEED``; anything but a sentence is an error.

A program of its own, so that a crash, a hang and memory beyond a limit end it and not the tests.
"""

import bz2
import gzip
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile

from cryon2n import frames, references
from cryon2n.errors import InputError
from movie_files import dm, eer, mrc_head, nibbles

MEMORY = 192 << 20  # bytes beyond what the program has when it begins
SECONDS = 20  # for one file
NAMES = {"mrc": "a.mrc", "gz": "a.mrc.gz", "bz2": "a.mrcs.bz2", "tiff": "a.tif", "eer": "a.eer", "dm": "a.dm4"}
EDGES = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def seeds(form, folder):
    """Give whole files of a format."""
    counts = np.random.default_rng(1).poisson(1.0, (3, 24, 33)).astype(np.uint8)
    mrc = bytes(mrc_head(33, 24, 3, 0)) + counts.tobytes()
    if form == "mrc":
        floats = bytes(mrc_head(33, 24, 3, 2, ">")) + counts.astype(">f4").tobytes()
        return [mrc, floats, bytes(mrc_head(33, 24, 3, 101)) + nibbles(counts & 15)]
    if form in ("gz", "bz2"):
        return [gzip.compress(mrc) if form == "gz" else bz2.compress(mrc)]
    if form == "eer":
        hits = (counts[:, :20] > 2).astype(np.uint8)
        return [eer(hits), eer(hits, 65000), eer(hits, 65002, (9, 3, 1), final_image=True, strips=2)]
    if form == "dm":
        gain = np.linspace(0.5, 2, 24 * 33, dtype=np.float32).reshape(24, 33)
        return [dm([gain]), dm([gain], 3, ">"), dm([(gain * 100).astype(np.uint16)])]
    out = []
    for compression in (None, "lzw", "deflate", "zstd", "packbits"):
        for options in ({}, {"rowsperstrip": 5}, {"tile": (16, 16)}, {"bigtiff": True}):
            path = folder / "seed.tif"
            with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as tiff:
                for frame in counts:
                    tiff.write(frame, compression=compression, contiguous=False, **options)
            out.append(path.read_bytes())
    return out


def damaged(rng, content):
    """Cut, overwrite, insert or remove bytes: a few, and mostly where headers are."""
    out = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        end = len(out) if rng.random() < 0.5 else min(len(out), 1024)
        at = rng.randrange(end) if end else 0
        match rng.randrange(6):
            case 0:
                del out[at:]
            case 1:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                size = rng.choice((1, 2, 4, 8))
                edge = rng.choice(EDGES) % 2 ** (8 * size)
                out[at : at + size] = edge.to_bytes(size, rng.choice(("little", "big")))
            case 3:
                out[at : at + 1] = bytes([out[at] ^ 1 << rng.randrange(8)]) if out else b""
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 8)))
            case 5:
                del out[at : at + rng.choice((1, 2, 8))]
    return bytes(out)


def read(form, path):
    """Read everything."""
    if form == "dm":
        references.read_reference(path, "gain")
        return
    with frames.open_frames(path) as movie:
        for index in range(min(len(movie), 50)):
            movie.read(index)


def main(form, n, seed):
    """Read `n` damaged files; print how many of them were refused."""
    with tempfile.TemporaryDirectory() as folder:
        print(
            attack(form, n, seed, seeds(form, Path(folder)), Path(folder, NAMES[form]), lambda path: read(form, path))
        )


def attack(form, n, seed, whole, path, read, named=True):
    """Call `read` on `path` with `n` damaged contents; return how many were refused, in sentences that name the file.

    Parameters
    ----------
    whole : list of bytes
        Contents that can be read.
    named : bool
        Every sentence must name `path`.
    """
    for content in whole:
        path.write_bytes(content)
        read(path)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    refused = 0
    for number in range(n):
        rng = random.Random(f"{form} {seed} {number}")
        path.write_bytes(damaged(rng, rng.choice(whole)))
        signal.alarm(SECONDS)
        try:
            read(path)
        except InputError as error:
            refused += 1
            sentence = str(error)
            if (named and path.name not in sentence) or "\n" in sentence:
                raise AssertionError(f"{form} {seed} {number}: {sentence!r}") from error
        except BaseException:
            print(f"{form} {seed} {number}", file=sys.stderr)
            raise
        signal.alarm(0)
    return refused


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
