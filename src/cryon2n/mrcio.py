"""Reading and writing MRC files: damage is refused by name, counts are unsigned, pixel sizes are kept.

Apart from ``files``, because what is read here makes numbers: it belongs into every rule's code version.
"""

import contextlib
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np

from cryon2n import __version__, files
from cryon2n.errors import InputError


def read_mrc(path: str | Path) -> tuple[np.ndarray, float | None]:
    """Read a whole MRC file as float32.

    Returns
    -------
    data : ndarray, shape (h, w) or (n, h, w), float32
    pixel_size : float or None
        In Å; None where the header holds none.

    Raises
    ------
    InputError
        The file is missing, not MRC, truncated, or holds NaN or infinity.
    """
    with open_mrc(path) as mrc:
        data = np.asarray(frame_data(mrc.data), dtype=np.float32)
        pixel_size = header_pixel_size(mrc)
    if data.ndim == 3 and data.shape[0] == 1:
        data = data[0]
    check_finite(path, data)
    return data, pixel_size


def check_finite(path: str | Path, data: np.ndarray) -> None:
    """Raise `InputError` if an image holds NaN or infinity."""
    if bad := int(data.size - np.count_nonzero(np.isfinite(data))):
        raise InputError(
            f"{path}: {bad} pixels are NaN or infinite; wanted finite values: repair or leave out the file"
        )


@contextlib.contextmanager
def open_mrc(path: str | Path) -> Iterator[mrcfile.mrcfile.MrcFile]:
    """Open an MRC file memory-mapped (compressed ones in memory); damage raises `InputError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # harmless header oddities; the errors below stay errors
            if str(path).endswith((".gz", ".bz2")):
                mrc = mrcfile.open(path, mode="r")
            else:
                mrc = mrcfile.mmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: not a complete MRC file ({str(error).rstrip('.')}); copy or fetch it again"
        ) from None
    try:
        yield mrc
    finally:
        mrc.close()


def frame_data(data: np.ndarray) -> np.ndarray:
    """Give 8-bit data as unsigned: counted frames exceed 127 and MRC mode 0 hides the sign."""
    return data.view(np.uint8) if data.dtype == np.int8 else data


def header_pixel_size(mrc: mrcfile.mrcfile.MrcFile) -> float | None:
    """Return the pixel size in Å from an open MRC file's header, or None if it holds none."""
    size = float(mrc.voxel_size.x)
    return size if np.isfinite(size) and size > 0 else None


def write_mrc(path: str | Path, data: np.ndarray, pixel_size: float, label: str = "") -> None:
    """Write an MRC file atomically.

    Parameters
    ----------
    path : path
    data : ndarray, shape (h, w) or (n, h, w)
        float32, float16 or uint8; uint8 is stored in mode 0, as counted movies are on EMPIAR.
    pixel_size : float
        In Å.
    label : str
        Added to the header beside the program's name.
    """
    if data.dtype == np.uint8:
        data = data.view(np.int8)
    with files.atomic_path(path) as temporary:
        with mrcfile.new(temporary, overwrite=True) as mrc:
            mrc.set_data(np.ascontiguousarray(data))
            if data.ndim == 3:
                mrc.set_image_stack()
            mrc.voxel_size = pixel_size
            mrc.header.label[0] = f"cryon2n {__version__} {label}"[:80].encode()
            mrc.header.nlabl = 1
            if data.dtype == np.int8:
                mark_unsigned(mrc.header)


def mark_unsigned(header: np.recarray) -> None:
    """Say in an MRC header of mode 0 that its bytes are unsigned: IMOD's mark at byte 152, with flag 0."""
    extra = bytearray(header.extra2.tobytes())  # from byte 112; mrcfile names no field of the mark
    extra[40:48] = np.array([1146047817, 0], header.nx.dtype).tobytes()
    header.extra2 = np.void(bytes(extra))
