import itertools
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from finetune_kit import Component, hookimpl
from finetune_kit.errors import PluginError, UnknownNameError
from finetune_kit.plugins import GROUP, KINDS, Plugins, installed

_NUMBERS = itertools.count()


def plugin(monkeypatch, name: str = "mine", module_name: str | None = None, **hooks) -> EntryPoint:
    """Return the entry point of a module made in memory, whose hooks are the given functions."""
    module = ModuleType(module_name or f"made_up_plugin_{next(_NUMBERS)}")
    for hook, function in hooks.items():
        setattr(module, hook, hookimpl(function))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return EntryPoint(name, module.__name__, GROUP)


def offering(*names: str):
    return lambda: [Component(name, f"What {name} does", "json:JSONDecoder") for name in names]


def test_a_plugin_made_by_hand_is_loaded_and_its_components_are_sorted(monkeypatch):
    host = Plugins(found=[plugin(monkeypatch, ftkit_strategies=offering("b", "a"), ftkit_trackers=offering("t"))])
    assert list(host.components("strategy")) == ["a", "b"]
    assert host.owner("tracker", "t") == "mine"
    assert host.loaded[0].hooks == ("ftkit_strategies", "ftkit_trackers")
    assert host.loaded[0].distribution == "(none)"
    assert not host.failures


def test_components_of_one_name_and_different_kinds_live_together(monkeypatch):
    host = Plugins(found=[plugin(monkeypatch, ftkit_strategies=offering("a"), ftkit_policies=offering("a"))])
    assert host.component("strategy", "a").name == host.component("policy", "a").name


def broken_at_import(monkeypatch, tmp_path, text: str) -> EntryPoint:
    name = f"broken_plugin_{next(_NUMBERS)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return EntryPoint("broken", name, GROUP)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("def f(:", "SyntaxError"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ],
)
def test_a_plugin_that_fails_to_import_disables_itself_and_the_rest_works(monkeypatch, tmp_path, text, reason):
    works = plugin(monkeypatch, ftkit_strategies=offering("a"))
    host = Plugins(found=[broken_at_import(monkeypatch, tmp_path, text), works])
    (failed,) = host.failures
    assert failed.name == "broken"
    assert failed.failure.startswith(reason)
    assert "\n" not in failed.failure
    assert list(host.components("strategy")) == ["a"]


def raising():
    raise RuntimeError("the moon is full")


def raising_late():
    yield Component("half", "Never seen", "json:JSONDecoder")
    raise RuntimeError("the moon is full")


@pytest.mark.parametrize("hook", [raising, raising_late])
def test_a_hook_that_raises_disables_the_whole_plugin(monkeypatch, hook):
    host = Plugins(found=[plugin(monkeypatch, ftkit_backbones=offering("b"), ftkit_strategies=hook)])
    assert host.failures[0].failure == "RuntimeError: the moon is full"
    assert all(not host.components(kind) for kind in KINDS)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [(["uaf"], "'uaf'"), ("uaf", "'uaf'"), (3, "3"), (Component("a", "b", "c:d"), "Component(name='a'")],
)
def test_a_hook_that_returns_something_else_is_told_what_it_must_return(monkeypatch, returned, shown):
    host = Plugins(found=[plugin(monkeypatch, ftkit_strategies=lambda: returned)])
    assert f"ftkit_strategies returned {shown}" in host.failures[0].failure
    assert "it must return" in host.failures[0].failure


def test_a_misspelt_hook_is_named_with_the_closest_one(monkeypatch):
    host = Plugins(found=[plugin(monkeypatch, ftkit_stratgies=offering("a"))])
    assert host.failures[0].failure.startswith(
        "no hook named 'ftkit_stratgies'. Did you mean 'ftkit_strategies'? Hooks: ftkit_strategies,"
    )


def test_a_hook_with_an_argument_that_no_specification_has_is_one_line(monkeypatch):
    host = Plugins(found=[plugin(monkeypatch, ftkit_strategies=lambda backbone: [])])
    assert "backbone" in host.failures[0].failure
    assert "\n" not in host.failures[0].failure


def test_two_plugins_of_one_name_are_refused(monkeypatch):
    entries = [plugin(monkeypatch, module_name="one_plugin"), plugin(monkeypatch, module_name="other_plugin")]
    with pytest.raises(PluginError, match="two plugins are named 'mine': one_plugin and other_plugin; uninstall one"):
        Plugins(found=entries)


def test_two_plugins_that_offer_one_component_are_refused(monkeypatch):
    entries = [plugin(monkeypatch, name, ftkit_strategies=offering("a")) for name in ("one", "other")]
    with pytest.raises(PluginError, match="two plugins offer a strategy named 'a': 'one' and 'other'"):
        Plugins(found=entries)


def test_one_plugin_that_offers_a_name_twice_is_refused(monkeypatch):
    with pytest.raises(PluginError, match=r"plugin 'mine' offers two .* named 'a'"):
        Plugins(found=[plugin(monkeypatch, ftkit_strategies=offering("a", "a"))])


def test_an_unknown_component_names_the_closest_and_all_installed(monkeypatch):
    host = Plugins(found=[plugin(monkeypatch, ftkit_strategies=offering("peterrec", "full"))])
    with pytest.raises(UnknownNameError) as caught:
        host.component("strategy", "peterec")
    assert str(caught.value) == "no strategy named 'peterec'. Did you mean 'peterrec'? Installed: 'full', 'peterrec'"


@pytest.mark.parametrize("target", ["no_such_module_x:Class", "json:NoSuchClass"])
def test_a_target_that_cannot_be_loaded_says_what_was_looked_for(target):
    with pytest.raises(PluginError, match=f"'a' can't be used: loading {target} failed"):
        Component("a", "What a does", target).load()


def test_calls_are_traced_on_stderr(monkeypatch, capsys):
    monkeypatch.setenv("FTKIT_TRACE", "1")
    Plugins(found=[plugin(monkeypatch, ftkit_strategies=offering("a"))])
    assert capsys.readouterr().err == "ftkit: calling ftkit_strategies of mine\n"


def test_nothing_is_traced_unless_asked_for(monkeypatch, capsys):
    monkeypatch.delenv("FTKIT_TRACE", raising=False)
    Plugins(found=[plugin(monkeypatch, ftkit_strategies=offering("a"))])
    assert capsys.readouterr().err == ""


def test_all_built_in_plugins_work():
    assert not installed().failures


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_component_has_a_summary_of_one_line_and_a_class(kind):
    for name, component in installed().components(kind).items():
        assert component.summary, name
        assert "\n" not in component.summary, name
        assert isinstance(component.load(), type), name


def test_an_unknown_name_is_said_together_with_the_plugins_that_are_disabled(monkeypatch, tmp_path):
    host = Plugins(found=[broken_at_import(monkeypatch, tmp_path, "1 / 0"), plugin(monkeypatch, "fine")])
    with pytest.raises(
        UnknownNameError, match=r"no strategy named 'x'.*Disabled plugins: '\w+'; see `ftkit plugins list`"
    ):
        host.component("strategy", "x")
