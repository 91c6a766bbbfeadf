"""Texts -> hashed words, and from them one key for each text and its set of word 3-grams.

Comes in: texts of some thousand rows. Goes out: numpy arrays with one entry for each row, word or shingle. Two texts
have one key exactly when `data.dedupe.normalise_text` makes one text of both (64 bits: among a million texts the odds
of one false match are below 1e-7). It knows nothing of files, thresholds or pairs.

Everything is done for all rows of a batch at once: 1.4 million descriptions have 200 million words, and a Python loop
over them takes minutes. The hashes are the same on every machine, which a library's hash of strings does not promise.

Shapes: R rows, W words, S shingles, B bytes.
"""

from __future__ import annotations

import functools
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from afina.data.dedupe import WORDS_PER_SHINGLE, normalise_text

MAX_ROWS = 1 << 16  # of a batch: a row's number has 16 bits where shingles are sorted
BATCH_CHARS = 1 << 20  # what stays in a core's cache while it is worked on
LONG_WORD_BYTES = 32  # longer ones are no words of a language, and are hashed one by one
END, SPACE = b"\0", 0x20  # of a row, and between words
LEFT_OUT = 0xFFFFFFFF  # stands for invisible characters

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))
_FIRST_BYTES = np.array([(1 << (8 * n)) - 1 for n in range(9)], dtype=np.uint64)


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of MurmurHash3, in place: each bit of a result depends on each bit that came in."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values ^= values >> np.uint64(33)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(33)
    return values


# -- characters ----------------------------------------------------------------------------------


@functools.cache
def _code_points() -> np.ndarray:
    """Code point -> itself, a space for punctuation, LEFT_OUT for what is invisible: `normalise_text`'s rule."""
    table = np.arange(0x110000, dtype=np.uint32)
    for code in range(0x110000):
        category = unicodedata.category(chr(code))
        if category[0] in "PZ" or category == "Cc":
            table[code] = SPACE
        elif category == "Cf":
            table[code] = LEFT_OUT
    table[0] = 0  # ends a row
    return table


@functools.cache
def _ascii() -> bytes:
    """The same for bytes, small letters for capitals; bytes of other characters stay."""
    plain = [ord(chr(code).lower()) if code < 128 else code for code in range(256)]
    spaces = [
        unicodedata.category(chr(code))[0] == "P" or unicodedata.category(chr(code)) == "Cc" for code in range(128)
    ]
    return bytes(SPACE if code < 128 and code and spaces[code] else plain[code] for code in range(256))


def _fold(texts: Iterable[str]) -> str:
    """Texts with other characters than ASCII, joined by END."""
    # Most texts are in this form already, which one look tells; so one at a time.
    folded = "\0".join([unicodedata.normalize("NFKC", text) for text in texts]).casefold()
    codes = _code_points()[np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype="<u4")]
    return codes[codes != LEFT_OUT].tobytes().decode("utf-32-le", "surrogatepass")


def _plain(texts: Sequence[str]) -> bytes:
    """Normalised texts in UTF-8, END after each; there may be several spaces where normalise_text leaves one."""
    joined = END.decode().join(texts)
    if joined.count("\0") != len(texts) - 1:
        texts = [text.replace("\0", " ") for text in texts]
        joined = "\0".join(texts)
    if not joined.isascii():
        plain = list(texts)
        others = [number for number, text in enumerate(texts) if not text.isascii()]
        for number, text in zip(others, _fold(plain[n] for n in others).split("\0"), strict=True):
            plain[number] = text
        joined = "\0".join(plain)
    return joined.encode("utf-8", "surrogatepass").translate(_ascii()) + END


# -- words ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """The words of a batch of texts, in order. hashes_W: uint64. counts_R: how many each text has.

    keys_R: uint64, equal for texts whose words are equal one by one.
    """

    hashes_W: np.ndarray
    counts_R: np.ndarray
    keys_R: np.ndarray


def hash_words(texts: Sequence[str], seed: int) -> Words:
    """texts: at least one. seed: another one gives other hashes, and the same equalities."""
    raw = b" " + _plain(texts) + b" " * 15
    bytes_B = np.frombuffer(raw[: len(raw) // 8 * 8], dtype=np.uint8)
    inside_B = bytes_B > SPACE
    edges = np.flatnonzero(inside_B[1:] != inside_B[:-1]) + 1
    starts_W, ends_W = edges[::2], edges[1::2]
    hashes_W = _word_hashes(raw, bytes_B, starts_W, ends_W - starts_W, seed)
    ends_R = np.searchsorted(starts_W, np.flatnonzero(bytes_B == 0))
    counts_R = np.diff(ends_R, prepend=0)
    keys_R = _sequence_keys(hashes_W, counts_R)
    for row in np.flatnonzero(counts_R == 0).tolist():  # punctuation alone: "?!" and "..." are not the same
        keys_R[row] = _digest(normalise_text(texts[row]).encode("utf-8", "replace"), seed)
    return Words(hashes_W, counts_R, keys_R)


def _word_hashes(raw: bytes, bytes_B: np.ndarray, starts_W: np.ndarray, lengths_W: np.ndarray, seed: int) -> np.ndarray:
    """A word of up to eight bytes is its own number; of a longer one, eight bytes at a time are mixed in."""
    eights = bytes_B.view(np.uint64)

    def load(places: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The bytes from each place on as one number, zeros behind the word's end."""
        at, shift = places >> 3, ((places & 7) << 3).astype(np.uint64)
        # Shifted twice, because a shift by all 64 bits is undefined.
        loaded = (eights[at] >> shift) | ((eights[at + 1] << np.uint64(1)) << (np.uint64(63) - shift))
        return loaded & _FIRST_BYTES[np.minimum(lengths, 8)]

    hashes_W = mix(load(starts_W, lengths_W) ^ np.uint64(seed & (2**64 - 1)))
    longer = np.flatnonzero(lengths_W > 8)
    for number in longer[lengths_W[longer] > LONG_WORD_BYTES]:
        begin = int(starts_W[number])
        hashes_W[number] = _digest(raw[begin : begin + int(lengths_W[number])], seed)
    longer = longer[lengths_W[longer] <= LONG_WORD_BYTES]
    for offset in range(8, LONG_WORD_BYTES, 8):
        longer = longer[lengths_W[longer] > offset]
        piece = load(starts_W[longer] + offset, lengths_W[longer] - offset)
        hashes_W[longer] = mix(hashes_W[longer] * _GOLDEN ^ piece)
    return hashes_W


def _digest(raw: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8, salt=(seed & (2**64 - 1)).to_bytes(8, "little")).digest())


@functools.cache
def _place_factors(num_places: int) -> np.ndarray:
    return mix(np.arange(1, num_places + 1, dtype=np.uint64) * _GOLDEN) | np.uint64(1)


def _sequence_keys(hashes_W: np.ndarray, counts_R: np.ndarray) -> np.ndarray:
    """Multilinear hashing (Lemire, Kaser: Strongly universal string hashing is fast, 2014): a factor for each place."""
    keys_R = np.zeros(len(counts_R), dtype=np.uint64)
    if not len(hashes_W):
        return keys_R
    starts_R = np.cumsum(counts_R) - counts_R
    places_W = np.arange(len(hashes_W)) - np.repeat(starts_R, counts_R)
    factors = _place_factors(1 << int(counts_R.max()).bit_length())
    filled = counts_R > 0
    keys_R[filled] = np.add.reduceat(hashes_W * factors[places_W], starts_R[filled])
    return mix(keys_R ^ mix(counts_R.astype(np.uint64)))


# -- shingles ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shingles:
    """The word 3-grams of a batch, as often as they stand. hashes_S: uint64. rows_S: rows, ascending."""

    hashes_S: np.ndarray
    rows_S: np.ndarray


def shingles_of(words: Words) -> Shingles:
    """Texts of fewer than three words have none: they are alike only when they are equal."""
    assert WORDS_PER_SHINGLE == len(_FACTORS) == 3
    rows_W = np.repeat(np.arange(len(words.counts_R)), words.counts_R)
    a, b, c = (words.hashes_W[n : len(words.hashes_W) - 2 + n] * factor for n, factor in enumerate(_FACTORS))
    whole = rows_W[2:] == rows_W[:-2]
    return Shingles(mix((a + b + c)[whole]), rows_W[2:][whole])


def sorted_sets(shingles: Shingles, keys_S: np.ndarray, key_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, keys) of the distinct shingles, sorted by row and then by key.

    keys_S: what each shingle is sorted by, below 2**key_bits, at most 48 bits. Equal keys of a row count once.
    """
    assert key_bits <= 48, "the row has the other bits"
    packed = (shingles.rows_S.astype(np.uint64) << np.uint64(key_bits)) | keys_S
    packed.sort()
    if len(packed):
        packed = packed[np.concatenate(([True], packed[1:] != packed[:-1]))]
    return (packed >> np.uint64(key_bits)).astype(np.int64), packed & np.uint64((1 << key_bits) - 1)


def batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """(number of the first row, texts) of a size that is worked on at once; a longer text is one of its own."""
    ends = np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
    begin = 0
    while begin < len(texts):
        before = int(ends[begin - 1]) if begin else 0
        end = int(np.searchsorted(ends, before + BATCH_CHARS, side="right"))
        end = min(max(end, begin + 1), begin + MAX_ROWS)
        yield begin, texts[begin:end]
        begin = end
