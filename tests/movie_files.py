"""Movies and references written by hand, byte by byte, for what no library writes: 4-bit MRC, EER, Gatan's DM."""

import itertools
import struct

import numpy as np

METADATA = (
    b'<metadata><item name="commercialName">Falcon 4i</item>'
    b'<item name="sensorPixelSize.width" unit="m">7.5e-11</item></metadata>'
)


def mrc_head(w, h, n, mode, order="<", pixel_size=1.5):
    """Header of an MRC file."""
    head = bytearray(1024)
    struct.pack_into(f"{order}10i", head, 0, w, h, n, mode, 0, 0, 0, w, h, n)
    struct.pack_into(f"{order}3f", head, 40, w * pixel_size, h * pixel_size, n * pixel_size)
    head[208:216] = b"MAP " + (b"DD\0\0" if order == "<" else b"\x11\x11\0\0")
    return head


def nibbles(frames):
    """Pack 4-bit frames (n, h, w), the first pixel in the low half of a byte, rows padded to a whole byte."""
    out = bytearray()
    for row in frames.reshape(-1, frames.shape[-1]).tolist():
        row += [0] * (len(row) % 2)
        out += bytes(row[i] | row[i + 1] << 4 for i in range(0, len(row), 2))
    return bytes(out)


def events(frame, bits=(7, 2, 2), seed=0):
    """Encode a frame (h, w) of 0 and 1 as electron events: runs of empty pixels, then a sub-pixel position.

    A full run (all bits set) has no event; bits fill bytes from the lowest up.
    """
    run_bits, full, sub_bits = bits[0], 2 ** bits[0] - 1, bits[1] + bits[2]
    stops = np.append(np.flatnonzero(frame), frame.size)
    runs = np.diff(stops, prepend=-1) - 1
    sub = np.random.default_rng(seed).integers(2**sub_bits, size=stops.size)
    # Each run: as many full codes as go into it, then the rest and the position in one word.
    full_codes = runs // full
    last = np.cumsum(full_codes + 1) - 1
    words = np.full(last[-1] + 1, full)
    lengths = np.full(last[-1] + 1, run_bits)
    words[last], lengths[last] = runs % full | sub << run_bits, run_bits + sub_bits
    words[-1], lengths[-1] = runs[-1] % full, run_bits  # the end of the frame is no event
    places = np.arange(run_bits + sub_bits)
    return np.packbits((words[:, None] >> places & 1)[places < lengths[:, None]], bitorder="little").tobytes()


def eer(frames, compression=65001, bits=None, metadata=METADATA, final_image=False, strips=1):
    """A whole EER file: a BigTIFF with a page per raw frame, without BitsPerSample as Falcon cameras write it."""
    coded = bits or {65000: (8, 2, 2), 65001: (7, 2, 2)}[compression]
    pages = [
        (65001 if compression is None else compression, events(f, coded, i), f.shape) for i, f in enumerate(frames)
    ]
    if final_image:
        pages.insert(0, (1, frames.sum(axis=0).astype("<u4").tobytes(), frames.shape[1:]))
    out = bytearray(b"II+\0\x08\0\0\0" + bytes(8))
    link = 8
    for number, (kind, data, (h, w)) in enumerate(pages):
        cuts = [len(data) * i // strips for i in range(strips + 1)]
        start, sizes = len(out), [b - a for a, b in itertools.pairwise(cuts)]
        out += data
        lists = len(out)
        places = [start + a for a in cuts[:-1]]
        out += struct.pack(f"<{strips}Q{strips}Q", *places, *sizes)
        text = len(out)
        out += metadata if number == 0 else b""
        fields = [(256, 4, 1, w), (257, 4, 1, h), (259, 3, 1, kind)]
        fields += [(258, 3, 1, 32)] if kind == 1 else []
        fields += [(273, 16, strips, places[0] if strips == 1 else lists), (278, 4, 1, -(-h // strips))]
        fields += [(279, 16, strips, sizes[0] if strips == 1 else lists + 8 * strips)]
        fields += [(65001, 7, len(metadata), text)] if metadata and number == 0 else []
        fields += [(65007 + i, 3, 1, b) for i, b in enumerate(bits or ())]
        struct.pack_into("<Q", out, link, len(out))
        out += struct.pack("<Q", len(fields))
        for field in sorted(fields):
            out += struct.pack("<HHQQ", *field)
        link = len(out)
        out += bytes(8)
    return bytes(out)


DM_PIXELS = {"i2": (1, 2), "f4": (2, 6), "u1": (6, 10), "i4": (7, 3), "u2": (10, 4), "f8": (12, 7)}


def dm(images, version=4, order="<"):
    """A Gatan DM3 or DM4 file with a thumbnail and `images` (h, w), among tags of every kind."""
    long = ">q" if version == 4 else ">i"

    def entry(kind, name, body):
        length = struct.pack(">q", len(body)) if version == 4 else b""
        return struct.pack(">BH", kind, len(name)) + name + length + body

    def data(name, info, content):
        words = b"".join(struct.pack(long, word) for word in (len(info), *info))
        return entry(21, name, b"%%%%" + words + content)

    def group(*tags):
        return b"\1\0" + struct.pack(long, len(tags)) + b"".join(tags)

    def number(name, value):
        return data(name, (5,), struct.pack(f"{order}I", value))

    def text(name, value):
        return data(name, (20, 4, len(value)), value.encode("utf-16-le" if order == "<" else "utf-16-be"))

    def image(array, kind, code, name=b""):
        sides = entry(20, b"Dimensions", group(*(number(b"", side) for side in array.shape[1::-1])))
        pixels = data(b"Data", (20, code, array.size), array.astype(array.dtype.newbyteorder(order)).tobytes())
        scale = data(b"Scale", (6,), struct.pack(f"{order}f", 0.5))
        return entry(20, name, group(entry(20, b"ImageData", group(scale, pixels, number(b"DataType", kind), sides))))

    thumbnail = image(np.zeros((4, 5), np.int32), 23, 3)
    tags = group(
        text(b"Application", "DigitalMicrograph"),
        data(b"Rectangle", (15, 0, 4, 0, 3, 0, 3, 0, 3, 0, 3), struct.pack(f"{order}4i", 1, 2, 3, 4)),
        data(b"Colours", (20, 15, 0, 3, 0, 2, 0, 2, 0, 2, 5), bytes(30)),
        data(b"Word", (18, 6), b"abcdef"),
        data(b"Flag", (8,), b"\1"),
        entry(20, b"ImageList", group(thumbnail, *(image(a, *DM_PIXELS[a.dtype.str[1:]]) for a in images))),
        number(b"MinVersion", 1),
    )
    head = struct.pack(">i", version) + struct.pack(long, len(tags)) + struct.pack(">i", order == "<")
    return head + tags + bytes(8)
