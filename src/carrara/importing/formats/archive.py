"""A zip or tar archive of pictures, by the rules of a folder; nothing of it is written anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from carrara.errors import UserError
from carrara.importing.archives import SUFFIXES, TARS, list_tar, list_zip
from carrara.importing.file_listing import Listing
from carrara.importing.formats import webdataset
from carrara.importing.options import Options
from carrara.importing.row import Rejected, Row, Survey


def matches(source: str) -> bool:
    """The source is a zip or tar file, and no shard of a WebDataset."""
    path = Path(source)
    return path.is_file() and path.name.lower().endswith(SUFFIXES) and not webdataset.matches(source)


def survey(source: str, options: Options) -> Survey:
    """Counts the pictures; the digest is of the archive's size and time. UserError where it has no picture."""
    listing = _listing(source)
    if not listing.pictures:
        raise UserError(f"no pictures found in {source}" + _first(listing))
    about = Path(source).stat()
    digest = f"{options.licence!r} {about.st_size} {about.st_mtime_ns}"
    return Survey(len(listing.pictures), hashlib.sha256(digest.encode()).hexdigest())


def rows(source: str, options: Options) -> Iterator[Row | Rejected]:
    """As those of the folder that it would unpack to."""
    yield from _listing(source).rows(source, options.licence)


def _listing(source: str) -> Listing:
    path = Path(source)
    return list_tar(path) if path.name.lower().endswith(TARS) else list_zip(path)


def _first(listing: Listing) -> str:
    bad = listing.rejected[:1]
    return f" (the first of what is there: {bad[0].source}: {bad[0].reason})" if bad else ""
