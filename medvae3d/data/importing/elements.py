"""The elements of DICOM files, walked through before GDCM sees them.

GDCM reads what a file claims: at sequences that are nested deeply the process ends, and a slice of
other colours, of fewer voxels than it says, or with a scaling that is no number comes back as some
image. Here the file is walked from one element to the next: lengths have to lie in it, sequences
may be nested as deeply as reports are, and what says how pixels are stored has to hold.

References:
    DICOM PS3.5, sections 7.1 (elements), 7.5 (sequences) and A (transfer syntaxes).
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

from medvae3d.data.nifti import LARGEST_GZIP_RATIO
from medvae3d.data.volumes import LARGEST_VALUE

DEEPEST, MOST_ELEMENTS = 16, 1_000_000
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END, PIXELS = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0x7FE00010
LONG = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR",
                  b"UT", b"UV"})  # fmt: skip
SHORT = frozenset({b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO",
                   b"LT", b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL",
                   b"US"})  # fmt: skip
IMPLICIT, BIG_ENDIAN, DEFLATED = (
    "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99",
)  # fmt: skip
# What decides how pixels are read, with the length of its number; scalings are texts.
SAMPLES, FRAMES, ROWS, COLUMNS, BITS, BITS_USED = (
    0x00280002, 0x00280008, 0x00280010, 0x00280011, 0x00280100, 0x00280101,
)  # fmt: skip
INTERCEPT, SLOPE = 0x00281052, 0x00281053
KEPT = frozenset({SAMPLES, ROWS, COLUMNS, BITS, BITS_USED, INTERCEPT, SLOPE})
LARGEST_KEPT = 64


def require_whole(path: Path, syntax: str) -> None:
    """Checks that all elements lie in the file, and that its pixels are one grey image, whole.

    Args:
        path: A file with the mark of DICOM.
        syntax: UID of its transfer syntax.

    Raises:
        ValueError: If not; says what.
    """
    found = walked(path, syntax)
    for tag in (ROWS, COLUMNS, BITS):
        if not found.numbers.get(tag):
            raise ValueError(f"it does not say its {NAMES[tag]}")
    samples, bits = found.numbers.get(SAMPLES, 1), found.numbers[BITS]
    if samples != 1:
        raise ValueError(f"it has {samples} values a pixel (colours); allowed is one")
    if bits not in (8, 16, 32) or not 0 < found.numbers.get(BITS_USED, bits) <= bits:
        raise ValueError(f"it has {bits} bits a pixel, {found.numbers.get(BITS_USED)} in use")
    for tag in (SLOPE, INTERCEPT):
        number = found.texts.get(tag)
        if number is not None and not abs(_number(number)) <= LARGEST_VALUE:
            raise ValueError(
                f"its {NAMES[tag]} is {number[:20]!r}; allowed are numbers up to {LARGEST_VALUE:g}"
            )
    wanted = found.numbers[ROWS] * found.numbers[COLUMNS] * bits // 8
    if found.pixels is None:
        raise ValueError("it has no pixels")
    if not found.is_encoded and found.pixels < wanted:
        raise ValueError(f"its pixels take {wanted} bytes, and it has {found.pixels}")


NAMES = {ROWS: "rows", COLUMNS: "columns", BITS: "bits", SLOPE: "slope", INTERCEPT: "intercept"}


class Walk:
    """One way through the elements of a file.

    Args:
        data: Its bytes.
        is_explicit: Whether elements say their kind.
        is_little: Whether the low byte of a number comes first.

    Attributes:
        numbers: Those of `KEPT` that are numbers, of the outermost level.
        texts: Those that are texts.
        pixels: Bytes of the pixels; ``None`` if there are none.
        is_encoded: Whether they are in fragments.
    """

    def __init__(self, data: bytes, *, is_explicit: bool, is_little: bool) -> None:
        self.data = data
        self.is_explicit = is_explicit
        self.order: str = "little" if is_little else "big"
        self.numbers: dict[int, int] = {}
        self.texts: dict[int, str] = {}
        self.pixels: int | None = None
        self.is_encoded = False
        self.left = MOST_ELEMENTS

    def number(self, at: int, size: int) -> int:
        """An unsigned number."""
        found = self.data[at : at + size]
        if len(found) < size:
            raise ValueError(f"it ends at byte {at}, in the middle of an element")
        return int.from_bytes(found, self.order)  # type: ignore[arg-type]

    def tag(self, at: int) -> int:
        """Group and element."""
        return self.number(at, 2) << 16 | self.number(at + 2, 2)

    def elements(self, at: int, end: int, depth: int, *, is_explicit: bool) -> int:
        """Walks to an end, or to the mark that ends an item; returns the byte behind it."""
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")
        while at < end:
            if end - at < 8 and not any(self.data[at:end]):
                return end  # filled up to a round length
            self.left -= 1
            if not self.left:
                raise ValueError(f"it has more than {MOST_ELEMENTS} elements")
            tag = self.tag(at)
            if tag == ITEM_END and depth:
                return at + 8
            kind, head = b"", 8
            if is_explicit:
                kind = self.data[at + 4 : at + 6]
                head, length = self.explicit(at)
            else:
                length = self.number(at + 4, 4)
            at = self.value(tag, kind, at + head, length, end, depth)
        return at

    def explicit(self, at: int) -> tuple[int, int]:
        """Bytes of the head of an element that says its kind, and of its value."""
        kind = self.data[at + 4 : at + 6]
        if kind in LONG:
            return 12, self.number(at + 8, 4)
        if kind in SHORT:
            return 8, self.number(at + 6, 2)
        # Of kinds that it does not know, GDCM takes other bytes for the length.
        raise ValueError(f"it has an element of the unknown kind {kind!r} at byte {at}")

    def value(self, tag: int, kind: bytes, at: int, length: int, end: int, depth: int) -> int:
        """Looks at the value of an element; returns the byte behind it."""
        is_open = length == UNDEFINED
        if not is_open and at + length > end:
            raise ValueError(f"an element promises {length} bytes at byte {at} of {end}")
        if tag == PIXELS:
            if not depth:
                self.pixels, self.is_encoded = length, is_open
            if not is_open:
                return at + length
            return self.items(at, end, depth, is_open=True, fragments=True)
        if is_open or kind == b"SQ" or (kind in (b"UN", b"") and self._begins_item(at, length)):
            stop = end if is_open else at + length
            # What is of an unknown kind is implicit inside, and so is what is in that.
            explicit = kind not in (b"UN", b"")
            return self.items(at, stop, depth, is_open=is_open, explicit=explicit)
        if not depth and tag in KEPT and length <= LARGEST_KEPT:
            if tag in (SLOPE, INTERCEPT):
                self.texts[tag] = self.data[at : at + length].decode("latin-1").strip(" \0")
            elif length == 2:
                self.numbers[tag] = self.number(at, 2)
        return at + length

    def _begins_item(self, at: int, length: int) -> bool:
        return length >= 8 and self.tag(at) == ITEM

    def items(
        self, at: int, end: int, depth: int, *, is_open: bool, explicit: bool = True,
        fragments: bool = False,
    ) -> int:  # fmt: skip
        """Walks through the items of a sequence, or the fragments of pixels."""
        while at < end:
            tag, length = self.tag(at), self.number(at + 4, 4)
            at += 8
            if tag == SEQUENCE_END and is_open:
                return at
            if tag != ITEM or (fragments and length == UNDEFINED):
                raise ValueError(f"it has no item where one should be, at byte {at - 8}")
            stop = end if length == UNDEFINED else at + length
            if stop > end:
                raise ValueError(f"an item promises {length} bytes at byte {at} of {end}")
            at = stop if fragments else self.elements(at, stop, depth + 1, is_explicit=explicit)
        if is_open:
            raise ValueError("a sequence has no end")
        return at


def walked(path: Path, syntax: str) -> Walk:
    """Walks through all elements of a file.

    Raises:
        ValueError: If one does not lie in the file, or sequences are nested too deeply.
    """
    data = path.read_bytes()
    head = Walk(data, is_explicit=True, is_little=True)
    at = 132
    while at < len(data) and head.number(at, 2) == 2:  # the group 0002 is always plain
        at += sum(head.explicit(at))
    if at >= len(data):
        raise ValueError("it ends before its first element")
    body = data[at:]
    if syntax == DEFLATED:
        body = _inflated(body)
    walk = Walk(body, is_explicit=syntax != IMPLICIT, is_little=syntax != BIG_ENDIAN)
    walk.elements(0, len(body), 0, is_explicit=walk.is_explicit)
    return walk


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj(-15)
    try:
        found = stream.decompress(data, min(len(data) * LARGEST_GZIP_RATIO, 1 << 28))
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked ({error})") from error
    if not stream.eof:
        raise ValueError("it is cut short, or unpacks to more than 268 MB")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
