import inspect

import pytest

from finetune_kit import errors
from finetune_kit.errors import FinetuneKitError, did_you_mean, one_line, unknown_name

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, Exception)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_a_value_error_of_our_own_and_stands_in_the_tree(error):
    assert issubclass(error, FinetuneKitError)
    assert issubclass(error, ValueError)
    assert error.__name__ in errors.__doc__


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_a_message_is_printed_without_quotes_around_it(error):
    assert str(error("no strategy named 'x'")) == "no strategy named 'x'"


def test_a_close_name_is_suggested_and_a_far_one_is_not():
    assert did_you_mean("temperatur", ["temperature", "policy"]) == " Did you mean 'temperature'?"
    assert did_you_mean("zzz", ["temperature", "policy"]) == ""


def test_an_unknown_name_says_what_there_is():
    assert str(unknown_name("policy", "convv", ["gru", "conv"])) == (
        "no policy named 'convv'. Did you mean 'conv'? Installed: 'conv', 'gru'"
    )
    assert str(unknown_name("policy", "conv", [])) == "no policy named 'conv'. Installed: none"


@pytest.mark.parametrize(
    ("error", "how", "said"),
    [
        (ValueError("Bad\n  column.\n"), {}, "Bad column"),
        (ValueError("\nBad\n  column."), {"first": True}, "Bad"),
        (ValueError("bad"), {"with_type": True}, "ValueError: bad"),
        (ValueError(), {}, "ValueError"),
        (ValueError(" \n"), {"first": True}, "ValueError"),
        (ValueError(), {"with_type": True}, "ValueError"),
    ],
)
def test_any_error_fits_in_one_line(error, how, said):
    assert one_line(error, **how) == said
