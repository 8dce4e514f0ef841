import zipfile
from pathlib import Path

import numpy as np
import pytest

from finetune_kit.data.dataset import Dataset
from finetune_kit.errors import DataError, OptionError
from ftkit_datasets.movielens import MovieLens, MovieLensOptions, mix

FILMS = {
    1: ("Toy Story (1995)", ["Animation"]),
    2: ('"Ça" (1990)', ["Horror"]),
    3: ("Heat (1995)", ["Action", "Crime"]),
    10: ("Alien (1979)", ["Horror", "Sci-Fi"]),
    20: ("Jaws (1975)", ["Action", "Horror"]),
}
USERS = {1: ("F", 1), 2: ("M", 56), 11: ("M", 25)}
RATINGS = [(1, 3, 50), (1, 1, 40), (1, 2, 60), (1, 10, 60), (2, 1, 5), (2, 3, 5), (2, 20, 1), (11, 1, 7)]


def official(folder: Path) -> Path:
    folder.mkdir(parents=True)
    texts = {
        "movies.dat": "".join(f"{film}::{title}::{'|'.join(genres)}\n" for film, (title, genres) in FILMS.items()),
        "users.dat": "".join(f"{user}::{gender}::{age}::4::12345\n" for user, (gender, age) in USERS.items()),
        "ratings.dat": "".join(f"{user}::{film}::5::{time}\n" for user, film, time in RATINGS),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="latin-1")
    return folder


def atomic(folder: Path) -> Path:
    folder.mkdir(parents=True)
    texts = {
        "ml.item": "item_id:token\tmovie_title:token\tgenre:token_seq\n"
        + "".join(f"{title}\t{title[:-7]}\t{' '.join(genres)}\n" for title, genres in FILMS.values()),
        "ml.user": "user_id:token\tage:float\tgender:token\n"
        + "".join(f"1m_{user}\t{age}\t{gender}\n" for user, (gender, age) in USERS.items()),
        "ml.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"1m_{user}\t{FILMS[film][0]}\t5\t{time}\n" for user, film, time in reversed(RATINGS)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def prepare(path: Path, output: Path, **options) -> Dataset:
    MovieLens(MovieLensOptions(path=str(path), **{"min_source": 1, **options})).prepare(output)
    return Dataset.open(output)


def test_films_of_the_genre_are_the_target_and_all_others_the_source(tmp_path):
    dataset = prepare(official(tmp_path / "ml"), tmp_path / "out")
    assert dataset.raw_users() == ["1", "2"]
    assert dataset.raw_source_items() == ["Heat (1995)", "Toy Story (1995)"]
    assert dataset.raw_target_items() == ['"Ça" (1990)', "Alien (1979)", "Jaws (1975)"]
    assert dataset.sequences(np.array([1]), 2).tolist() == [[2, 1]]
    assert dataset.labels["gender"].classes == ("F", "M")
    assert dataset.labels["age"].classes == ("1", "56")


def test_both_formats_give_the_same_dataset_from_a_folder_or_a_zip(tmp_path):
    paths = [official(tmp_path / "a/ml-1m"), atomic(tmp_path / "b/ml-1m")]
    for k, path in enumerate(paths[:]):
        paths.append(tmp_path / f"{k}.zip")
        with zipfile.ZipFile(paths[-1], "w") as archive:
            for file in path.iterdir():
                archive.write(file, f"ml-1m/{file.name}")
    datasets = [prepare(path, tmp_path / f"out{k}") for k, path in enumerate(paths)]
    assert len({dataset.fingerprint for dataset in datasets}) == 1


def test_ties_are_ordered_by_a_hash_of_user_and_title(tmp_path):
    dataset = prepare(official(tmp_path / "ml"), tmp_path / "out")
    titles = sorted(title for title, _ in FILMS.values())
    names = ["Heat (1995)", "Toy Story (1995)"]
    ties = mix(np.array([2, 2]), np.array([titles.index(name) + 1 for name in names]))
    assert dataset.sequences(np.array([2]), 2).tolist() == [(np.argsort(ties) + 1).tolist()]


def test_the_hash_is_splitmix64():
    def slow(user: int, item: int) -> int:
        x = (user * 0x9E3779B97F4A7C15 + item * 0xD1B54A32D192ED03 + 20210217) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    users, items = np.array([1, 6040, 17]), np.array([3706, 1, 2])
    assert mix(users, items).tolist() == [
        slow(user, item) for user, item in zip(users.tolist(), items.tolist(), strict=True)
    ]


def test_a_misspelt_genre_is_answered_with_the_genres(tmp_path):
    with pytest.raises(OptionError, match=r"no film has the genre 'Horor'\. Did you mean 'Horror'\? Genres: Action, "):
        prepare(official(tmp_path / "ml"), tmp_path / "out", genre="Horor")


def test_what_holds_no_copy_is_refused(tmp_path):
    with pytest.raises(DataError, match="no MovieLens copy at"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither ratings\.dat"):
        prepare(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "letter").write_text("dear")
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        prepare(tmp_path / "letter", tmp_path / "out")
    official(tmp_path / "two/a"), atomic(tmp_path / "two/b")
    with pytest.raises(DataError, match="holds several copies"):
        prepare(tmp_path / "two", tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("1::1::5::41\n", "ratings.dat, line 9: a user and item that an earlier row has already"),
        ("1::99::5::41\n", "ratings.dat, line 9: item '99' is not in movies.dat"),
        ("1::20::5::soon\n", "ratings.dat, line 9: time 'soon' is not a number"),
        ("x::20::5::4\n", "ratings.dat, line 9: user 'x' does not end in a number"),
        ("1::20::5\n", "ratings.dat, line 9: columns expected: 4, found: 3"),
    ],
)
def test_a_bad_rating_is_refused_with_file_line_and_reason(tmp_path, line, reason):
    folder = official(tmp_path / "ml")
    with (folder / "ratings.dat").open("a") as file:
        file.write(line)
    with pytest.raises(DataError) as caught:
        prepare(folder, tmp_path / "out")
    assert reason in str(caught.value)
    assert prepare(folder, tmp_path / "out", on_bad="drop").num_users == 2
