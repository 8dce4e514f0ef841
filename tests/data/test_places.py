from pathlib import Path

import fsspec
import pytest
from fsspec.registry import known_implementations

from finetune_kit.data.places import find_place
from finetune_kit.data.remote import RemoteFile, find_remote, is_address, without_secrets
from finetune_kit.errors import DataError, OptionError

LOG = ["day=1/part-0.parquet", "day=1/part-10.parquet", "day=1/part-2.csv.zst", "day=2/deep/part-0.tsv.gz", "top.csv"]
LEFT_OUT = ["_SUCCESS", "day=1/.part-0.parquet.crc", "_temporary/part-0.parquet", "README.txt"]


@pytest.fixture
def memory():
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    yield filesystem
    filesystem.store.clear()


def fill(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def below(place, folder: str) -> list[str]:
    return [str(file).removeprefix(f"{folder}/") for file in place.files]


def test_a_folder_stands_for_all_tables_below_it_in_the_order_of_their_paths(tmp_path):
    place = find_place(str(fill(tmp_path, LOG + LEFT_OUT)), "source")
    assert below(place, str(tmp_path)) == LOG
    assert place.address == str(tmp_path)


@pytest.mark.parametrize("prefix", ["memory://", "simplecache::memory://"])
def test_a_copy_behind_an_address_has_the_same_files_in_the_same_order(memory, prefix):
    for name in LOG + LEFT_OUT:
        memory.pipe(f"/log/{name}", b"")
    place = find_place(f"{prefix}log", "source")
    assert below(place, "memory:///log") == LOG


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["top.csv"]),
        ("day=*/part-?.parquet", LOG[:1]),
        ("**/part-*.parquet", LOG[:2]),
        ("day=*", LOG[:4]),
        ("day=[2-9]", LOG[3:4]),
    ],
)
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_pattern_stands_for_the_files_it_matches_and_those_below_folders_it_matches(
    tmp_path, memory, pattern, expected, is_remote
):
    fill(tmp_path, LOG + LEFT_OUT)
    for name in LOG + LEFT_OUT:
        memory.pipe(f"/log/{name}", b"")
    root = "memory://log" if is_remote else str(tmp_path)
    place = find_place(f"{root}/{pattern}", "source")
    wanted = [name for name in expected if name not in LEFT_OUT]
    assert below(place, "memory:///log" if is_remote else root) == wanted


def test_what_a_pattern_names_itself_is_never_left_out_in_silence(tmp_path):
    fill(tmp_path, ["part-0.csv", "part-1.csv.bz2"])
    assert below(find_place(f"{tmp_path}/part-*", "source"), str(tmp_path)) == ["part-0.csv", "part-1.csv.bz2"]


@pytest.mark.parametrize("text", ["nowhere", "*.parquet", "nowhere/**/*.csv", "a/**b", "memory://nowhere/*.csv"])
def test_what_stands_for_no_file_is_said_in_one_line(tmp_path, memory, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^source '.*': no such file or folder, and no file matches it as a pattern$"):
        find_place(text, "source")


def test_a_folder_without_tables_is_refused_with_the_number_of_its_files(tmp_path):
    with pytest.raises(DataError, match="none of its 4 files is a table"):
        find_place(str(fill(tmp_path, LEFT_OUT)), "source")


def test_links_are_followed_into_each_folder_once(tmp_path):
    fill(tmp_path / "disk", ["a.csv"])
    fill(tmp_path / "log", ["b.csv"])
    (tmp_path / "log" / "day=1").symlink_to(tmp_path / "disk")
    (tmp_path / "log" / "loop").symlink_to(tmp_path / "log")
    assert below(find_place(str(tmp_path / "log"), "source"), f"{tmp_path}/log") == ["b.csv", "day=1/a.csv"]


def test_folders_say_columns_only_below_what_was_given(tmp_path):
    fill(tmp_path, ["user=7/day=2026-01-01/hour=__HIVE_DEFAULT_PARTITION__/city=New%20York/a.csv"])
    place = find_place(f"{tmp_path}/user=7", "source")
    assert place.partition(place.files[0]) == {"day": "2026-01-01", "hour": None, "city": "New York"}
    one = find_place(str(place.files[0]), "source")
    assert one.partition(one.files[0]) == {}
    matched = find_place(f"{tmp_path}/user=7/day=*/**/*.csv", "source")
    assert matched.partition(matched.files[0])["day"] == "2026-01-01"


def test_an_address_of_this_machines_files_is_a_path(tmp_path):
    fill(tmp_path, LOG)
    assert find_place(f"file://{tmp_path}", "source").files == find_place(str(tmp_path), "source").files


@pytest.mark.parametrize("text", ["C:\\log", "c://log", "a/b", "log: x", "a::b.csv", "://x", ""])
def test_paths_are_no_addresses(text):
    assert not is_address(text)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("absent://bucket/x", "'absent://bucket/x' needs a library that is not installed; pip install no_such_library"),
        ("memori://x", "fsspec knows no memori://. Did you mean 'memory'? Give for example s3:// or gs://"),
        ("zip://log.csv::memory://log.zip", "archives are not read; unpack it, and give the files"),
    ],
)
def test_an_address_that_can_not_be_read_is_refused_in_one_line(address, expected, monkeypatch):
    absent = {"class": "no_such_library.FileSystem", "err": "install it"}
    monkeypatch.setitem(known_implementations, "absent", absent)
    with pytest.raises(OptionError) as caught:
        find_place(address, "source")
    assert str(caught.value).endswith(expected)


def test_a_remote_file_knows_its_name_without_a_query():
    file = RemoteFile("https://host/part.csv.gz", "https://host/part.csv.gz?signature=x", 1)
    assert (file.name, file.suffix, str(file)) == ("part.csv.gz", ".gz", "https://host/part.csv.gz")


def test_what_was_listed_a_moment_ago_is_listed_anew(memory):
    memory.pipe("/log/a.csv", b"x")
    assert len(find_remote("memory://log", "source")[0]) == 1
    memory.pipe("/log/b.csv", b"x")
    assert len(find_remote("memory://log", "source")[0]) == 2


def test_text_without_addresses_stays_as_it_is():
    for text in ("a?b=c", "ann@example.org", "s3://bucket/part-?.csv", "s3://bucket/day=1/x", "C:\\x?y=z"):
        assert without_secrets(text) == text
