import pytest
from finetune_kit.errors import DataError
from finetune_kit.testing import DatasetContract

from ftkit_my_dataset.dataset import MyDataset

GOOD = '{"user": "ann", "source": ["x"], "target": ["p"]}\n'
BAD = [
    ("ann,x,p\n", "no JSON: Expecting value at character 1"),
    ("[1]\n", 'no object with a "user" that is a text'),
    (GOOD, "user 'ann' that an earlier line has already"),
    ('{"user": "bob", "source": "x", "target": []}\n', '"source" is no list of texts'),
    ('{"user": "bob", "source": ["x"], "target": ["p", "p"]}\n', "a target item stands twice in the list"),
]


class TestMyDataset(DatasetContract):
    """All that a dataset reader promises, on what its `example` writes."""

    dataset = "my-dataset"
    sequences = {"ann": ["x", "y", "x"], "bob": ["z"]}  # noqa: RUF012  (nobody changes it)
    targets = {"ann": ["p"], "bob": ["q", "p"]}  # noqa: RUF012  (nor these)

    def bad_inputs(self, folder):
        """Yield options for a file with each of the bad lines, to be refused and to be dropped."""
        for line, _ in BAD:
            (folder / "bad.jsonl").write_text(GOOD + line)
            yield {"file": str(folder / "bad.jsonl")}
            yield {"file": str(folder / "bad.jsonl"), "on_bad": "drop"}


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_line_that_cannot_be_used_is_refused_with_file_line_and_reason(tmp_path, line, reason):
    (tmp_path / "users.jsonl").write_text(GOOD + line)
    reader = MyDataset(MyDataset.Options(file=str(tmp_path / "users.jsonl")))
    with pytest.raises(DataError) as caught:
        reader.prepare(tmp_path / "out")
    assert f"users.jsonl, line 2: {reason}" in str(caught.value)
