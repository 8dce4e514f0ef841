import sys
from importlib.metadata import EntryPoint, entry_points

import pytest

from documents import TINY
from finetune_kit import plugins
from finetune_kit.plugins import GROUP

PLUGIN = """
from finetune_kit import Component, Strategy, hookimpl


@hookimpl
def ftkit_strategies():
    return [Component("faulty", "Fails in its first step", f"{__name__}:Faulty")]


class Faulty(Strategy):
    def build(self):
        pass

    def loss(self, batch, encoded):
        return super().loss(batch, encoded) + encoded.vectors @ encoded.vectors
"""


@pytest.fixture
def faulty(monkeypatch, tmp_path):
    (tmp_path / "ftkit_faulty.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ftkit_faulty", raising=False)
    entry = EntryPoint("faulty", "ftkit_faulty", GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), entry])
    plugins.installed.cache_clear()
    yield
    plugins.installed.cache_clear()


def test_what_a_third_party_s_plugin_raises_is_one_line_that_names_it(ftkit, faulty):
    done = ftkit("run", "--strategy", "faulty", "--epochs", "1", *TINY, "--output", "out")
    assert done.code == 2
    assert done.err.splitlines()[-1].startswith("ftkit: the plugin 'faulty' failed: RuntimeError: ")
    assert done.err.splitlines()[-1].endswith("; ftkit --traceback shows where")
    with pytest.raises(RuntimeError):
        ftkit("--traceback", "run", "--strategy", "faulty", "--epochs", "1", *TINY, "--output", "two")


def test_options_that_a_backbone_s_class_does_not_bear_are_one_line(ftkit):
    pytest.importorskip("transformers")
    wrong = ("--set", "backbone.config.activation_function=nonsense")
    done = ftkit("run", "--strategy", "bitfit", "--backbone", "transformers", *TINY, *wrong)
    assert done.code == 2
    assert "'transformers' can't be built with backbone options" in done.err.splitlines()[-1]
