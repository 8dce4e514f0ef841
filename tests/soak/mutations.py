"""Ways to spoil a file: its bytes, its lines and columns, single values, or what stands at its path."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

VALUES = [
    *(
        "",
        " ",
        "0",
        "00",
        "-0",
        "-1",
        "1.5",
        "1e5",
        "1e400",
        "-1e400",
        "nan",
        "NaN",
        "inf",
        "-Infinity",
        "null",
        "None",
    ),
    *(str(2**31), str(2**63 - 1), str(2**63), str(-(2**63) - 1), str(2**64), "9" * 400, "0x1F", "1_000", "١٢", "²"),
    *("true", "false", "epoch", "infinity", "1970-01-01", "9999-12-31T23:59:59.999999Z", "294247-01-10", "0000-00-00"),
    *(
        '"',
        '""',
        "'",
        '"a,b"',
        '"a\nb"',
        '"a""b"',
        "a\tb",
        "\\",
        "\\N",
        "\\n",
        "::",
        ",,",
        "\x00",
        "\x01",
        "\x1a",
        "\x1b[31m",
    ),
    *("é", "e\u0301", "🙂", "\u202e", "\u2028", "\x85", "\ufeff", "\ufffd", "𐏿", "ß", "İ"),
    *(
        "%s",
        "{}",
        "{value}",
        "[",
        "]",
        "[[",
        "{",
        "}",
        "[1]",
        '{"a":1}',
        "--",
        "#",
        "user",
        "item",
        "time",
        "a" * 200_000,
    ),
]
"""What people, programs and attackers write where a value should stand."""


def flip_bits(data: bytes, random: Random) -> bytes:
    spoiled = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8])):
        if spoiled:
            spoiled[random.randrange(len(spoiled))] ^= 1 << random.randrange(8)
    return bytes(spoiled)


def cut_short(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def cut_out(data: bytes, random: Random) -> bytes:
    begin, end = _piece(data, random)
    return data[:begin] + data[end:]


def repeat(data: bytes, random: Random) -> bytes:
    begin, end = _piece(data, random)
    return data[:end] + data[begin:]


def insert_bytes(data: bytes, random: Random) -> bytes:
    place = random.randrange(len(data) + 1)
    some = random.choice(
        [b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b'"', b"\x1a"]
    )
    return data[:place] + some * random.choice([1, 1, 3]) + data[place:]


def swap_lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    random.shuffle(lines)
    return b"\n".join(lines)


def drop_line(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    del lines[random.randrange(len(lines))]
    return b"\n".join(lines)


def double_line(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    return b"\n".join([*lines[:place], lines[place], *lines[place:]])


def lengthen_line(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    place = random.randrange(len(lines))
    lines[place] += lines[place][-1:] * random.choice([1000, 140_000, 3_000_000])
    return b"\n".join(lines)


def drop_column(data: bytes, random: Random) -> bytes:
    return _columns(data, random, lambda fields, place: fields[:place] + fields[place + 1 :])


def double_column(data: bytes, random: Random) -> bytes:
    return _columns(data, random, lambda fields, place: [*fields[: place + 1], *fields[place:]])


def replace_value(data: bytes, random: Random) -> bytes:
    """Put something else in the place of a word or a number."""
    words = list(re.finditer(rb"[\w.+-]+", data))
    if not words:
        return data
    word = random.choice(words)
    return data[: word.start()] + random.choice(VALUES).encode() + data[word.end() :]


def nest_deeply(data: bytes, random: Random) -> bytes:
    place, depth = random.randrange(len(data) + 1), random.choice([50, 2000, 200_000])
    opening, closing = random.choice([(b"[", b"]"), (b'{"a":', b"}"), (b"{a=", b"}"), (b"a.", b"")])
    return data[:place] + opening * depth + random.choice([b"", b"1"]) + closing * depth + data[place:]


def other_line_ends(data: bytes, random: Random) -> bytes:
    return data.replace(b"\n", random.choice([b"\r\n", b"\r", b"\n\n", b"\x0b", b"\xe2\x80\xa8"]))


def other_encoding(data: bytes, random: Random) -> bytes:
    text = data.decode("latin-1")
    return text.encode(random.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7"]))


def pack(data: bytes, random: Random) -> bytes:
    packed = gzip.compress(data, mtime=0)
    return random.choice([packed, packed + packed, packed[:-5], packed + b"more", flip_bits(packed, random)])


def something_else(data: bytes, random: Random) -> bytes:
    return random.choice([b"", b"\n", b"\xef\xbb\xbf", b"PAR1", b"PK\x03\x04", random.randbytes(300), b"\x00" * 5000])


Mutation = Callable[[bytes, Random], bytes]
ANY: list[Mutation] = [flip_bits, cut_short, cut_out, repeat, insert_bytes, something_else, pack]
TEXT: list[Mutation] = [
    *ANY,
    *(swap_lines, drop_line, double_line, lengthen_line, drop_column, double_column, nest_deeply),
    *(other_line_ends, other_encoding),
    *[replace_value] * 8,
]


def spoil(path: Path, random: Random, mutations: list[Mutation]) -> None:
    """Change a file in one to three ways; now and then put something that is no file in its place."""
    if random.random() < 0.06:
        replace_file(path, random)
        return
    data = path.read_bytes()
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        data = random.choice(mutations)(data, random)
    path.write_bytes(data[: 1 << 23])


def replace_file(path: Path, random: Random) -> None:
    path.unlink()
    kind = random.choice(["nothing", "folder", "loop", "dangling", "unreadable"])
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "unreadable":  # root reads it all the same
        path.write_bytes(b"secret")
        path.chmod(0)


def _piece(data: bytes, random: Random) -> tuple[int, int]:
    begin = random.randrange(len(data) + 1)
    return begin, min(len(data), begin + random.choice([1, 2, 10, 100, 1000]))


def _columns(data: bytes, random: Random, change: Callable[[list[bytes], int], list[bytes]]) -> bytes:
    delimiter = next((mark for mark in (b"\t", b"::", b",") if mark in data), b" ")
    place = random.randrange(3)
    return b"\n".join(delimiter.join(change(line.split(delimiter), place)) for line in data.split(b"\n"))
