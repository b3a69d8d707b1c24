"""Names of micrographs: what a movie's file name gives, and which names may become files and wildcards."""

import re
from pathlib import PurePath

from cryon2n.errors import InputError
from cryon2n.movie_header import MOVIE_ENDINGS, movie_ending

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


def micrograph_name(filename: str) -> str:
    """Return a movie's micrograph name: the file name without its ending and a trailing ``.frames``."""
    ending = movie_ending(filename)
    if ending is None:
        raise InputError(f"{filename!r}: is not a movie; wanted a name that ends in {', '.join(MOVIE_ENDINGS)}")
    name = bare_name(filename)
    if not is_safe_name(name):
        raise InputError(f"{filename!r}: gives no safe micrograph name ({name!r}); choose others with --pattern")
    return name


def bare_name(filename: str) -> str:
    """Return a file's name without its ending (a movie's may be double, as ``.mrc.bz2``) and a trailing ``.frames``."""
    ending = movie_ending(filename) or PurePath(filename).suffix
    return filename[: len(filename) - len(ending)].removesuffix(".frames")


def is_safe_name(name: str) -> bool:
    """Tell whether a name can be a file name and a workflow wildcard: plain characters and no ``..``."""
    return bool(SAFE_NAME.fullmatch(name)) and ".." not in name
