import importlib
import subprocess
import sys
import time
from importlib.metadata import EntryPoint, entry_points
from itertools import product

import pytest

from documents import ROOT
from finetune_kit import plugins
from finetune_kit.cli.plugin_check import check
from finetune_kit.cli.scaffold import LONGEST_NAME, TEMPLATE_KINDS, TEMPLATES, template_files, write_plugin
from finetune_kit.cli.time_limit import time_limit
from finetune_kit.config import read_toml
from finetune_kit.errors import OptionError, UnknownNameError
from finetune_kit.plugins import GROUP, Plugins, installed

# Begin a plugin


@pytest.mark.parametrize("kind", TEMPLATE_KINDS)
@pytest.mark.parametrize("name", ["m", "my-own", "x" * LONGEST_NAME])
def test_what_is_written_passes_ruff_and_has_no_word_of_the_template_left(tmp_path, kind, name):
    files = write_plugin(tmp_path / "project", name, kind)
    assert len(files) == len(template_files(kind)) == 6
    for path in files:
        text = f"{path.relative_to(tmp_path)}\n{path.read_text()}"
        assert not any(word in text for word in (f"my-{kind}", f"my_{kind}", f"My{kind.capitalize()}"))
    for words in (("check",), ("format", "--check")):
        command = [sys.executable, "-m", "ruff", *words, "--no-cache", "--quiet", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", TEMPLATE_KINDS)
def test_a_new_plugin_offers_its_component(tmp_path, kind, monkeypatch):
    write_plugin(tmp_path, f"offered-{kind}", kind)
    monkeypatch.syspath_prepend(tmp_path)
    project = read_toml(tmp_path / "pyproject.toml")["project"]
    ((name, module),) = project["entry-points"][GROUP].items()
    host = Plugins([EntryPoint(name, module, GROUP)])
    assert not host.failures
    assert list(host.components(kind)) == [f"offered-{kind}"]
    assert [finding.state for finding in check(host)] == ["kept"]


def test_a_new_project_asks_for_the_version_that_wrote_it(tmp_path):
    version = read_toml(ROOT / "pyproject.toml")["project"]["version"]
    write_plugin(tmp_path, "method")
    (wanted,) = read_toml(tmp_path / "pyproject.toml")["project"]["dependencies"]
    assert wanted == f"finetune-kit>={version},<0.2"


def test_the_templates_differ_in_nothing_but_their_kind():
    for path in ("pyproject.toml",):
        texts = {(TEMPLATES / kind / path).read_text().replace(kind, "KIND") for kind in TEMPLATE_KINDS}
        lines = [set(text.splitlines()) for text in texts]
        assert {line.split(" = ")[0] for line in set.union(*lines) - set.intersection(*lines)} == {"description"}


def test_new_writes_beside_the_user_and_says_what_comes_next(ftkit, tmp_path):
    done = ftkit("plugins", "new", "nearby", "--kind", "policy")
    assert done.code == 0
    assert (tmp_path / "ftkit-nearby" / "ftkit_nearby" / "policy.py").is_file()
    last = done.out.splitlines()[-1]
    assert last == "next: pip install -e ftkit-nearby; ftkit plugins check nearby; python -m pytest ftkit-nearby"
    assert len(ftkit("plugins", "new", "nearby", "--output", "other", "--json").json["files"]) == 6


@pytest.mark.parametrize("name", ["My", "a b", "-x", "x_y", "", "é"])
def test_a_name_that_is_none_is_refused(tmp_path, name):
    with pytest.raises(OptionError, match="can't name a plugin"):
        write_plugin(tmp_path / "project", name)
    assert not (tmp_path / "project").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *product(["encoded", "batch", "item-task"], TEMPLATE_KINDS),
        ("tensor", "backbone"),
        ("path", "dataset"),
    ],
)
def test_a_name_whose_class_would_hide_what_is_imported_is_refused(tmp_path, name, kind):
    with pytest.raises(OptionError, match=f"its class would be called .*; use another, e.g. my-{name}"):
        write_plugin(tmp_path / "project", name, kind)
    assert not (tmp_path / "project").exists()


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(OptionError, match="has 25 characters; use at most 24"):
        write_plugin(tmp_path / "project", "x" * 25)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("dear")
    with pytest.raises(OptionError, match="holds something already"):
        write_plugin(tmp_path, "method")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uaf-hard"], "a strategy named 'uaf-hard' is installed already"),
        (["nextitnet", "--kind", "backbone"], "a backbone named 'nextitnet' is installed already"),
        (["uaf"], "a plugin named 'uaf' is installed already"),
        (["mine", "--kind", "tracker"], "no kind of plugin named 'tracker'"),
        (["a.b"], "'a.b' can't name a plugin; use small letters"),
    ],
)
def test_a_new_plugin_may_not_take_what_is_there(ftkit, tmp_path, arguments, message):
    done = ftkit("plugins", "new", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"ftkit: {message}")
    assert not list(tmp_path.glob("ftkit-*"))


# Check one


def test_all_built_in_components_load():
    assert [finding for finding in check(installed()) if finding.state != "kept"] == []


def test_an_unknown_plugin_is_named():
    with pytest.raises(UnknownNameError, match=r"no plugin named 'uav'. Did you mean 'uaf'\?"):
        check(installed(), "uav")


HEAD = """
from finetune_kit import Component, Options, Strategy, hookimpl
"""
OFFER = """
@hookimpl
def ftkit_strategies():
    return [Component("planted", "Planted", f"{__name__}:Planted")]
"""
FAULTY = """
class Plain:
    pass

class BareOptions(Options):
    rank: int = 1

class Bare(Strategy):
    Options = BareOptions

@hookimpl
def ftkit_strategies():
    return [
        Component("gone", "No such class", f"{__name__}:Gone"),
        Component("plain", "No strategy", f"{__name__}:Plain"),
        Component("bare", "Undocumented option", f"{__name__}:Bare"),
        Component("preset", "Unknown preset", f"{__name__}:Bare", {"rnk": 2}),
        Component("value", "A preset that does not fit", f"{__name__}:Bare", {"rank": "two"}),
        Component("variant", "Variants that do not fit", f"{__name__}:Bare", {}, {"paper": {"rnk": 1}, "papr": {}}),
        Component("paper", "A value that does not fit", f"{__name__}:Bare", {}, {"paper": {"rank": "two"}}),
        Component("exits", "Ends the program", "ends_the_program:Exits"),
    ]
"""


@pytest.fixture
def plant(tmp_path_factory, monkeypatch):
    """Return a function that makes a module of a text, and of the module the installed plugin ``planted``."""

    def install(text: str, name: str = "planted") -> EntryPoint:
        folder = tmp_path_factory.mktemp("planted")
        module = f"{name}_{folder.name}"
        (folder / f"{module}.py").write_text(HEAD + text)
        (folder / "ends_the_program.py").write_text("raise SystemExit(0)")
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        entry = EntryPoint(name, module, GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [*entry_points(group=group), entry])
        installed.cache_clear()
        return entry

    yield install
    installed.cache_clear()


def test_every_fault_is_said(plant):
    entry = plant(FAULTY)
    faults = {finding.component: finding.reason for finding in check(Plugins([entry]), "planted")}
    assert "has no attribute 'Gone'" in faults["gone"]
    assert faults["plain"] == f"{entry.value}:Plain is no subclass of finetune_kit.Strategy"
    assert faults["bare"] == "option 'rank' lacks its docstring"
    assert "options that it does not have: rnk" in faults["preset"]
    assert "its preset does not fit: strategy.rank = 'two': " in faults["value"]
    assert "its variant 'paper' sets options that it does not have: rnk" in faults["variant"]
    assert "its variant 'papr' is no --preset; those are none, paper, authors" in faults["variant"]
    assert "its variant 'paper' does not fit: strategy.rank = 'two': " in faults["paper"]
    assert "loading ends_the_program:Exits failed: SystemExit: 0" in faults["exits"]


def broken(done) -> dict[str, str]:
    assert done.code == 2
    return {one["promise"]: one["reason"] for one in done.json if one["state"] == "broken"}


def test_a_broken_promise_is_told_with_the_first_line_of_its_failure(plant, ftkit, tmp_path):
    plant(
        """
class Planted(Strategy):
    def build(self):
        self.backbone.blocks.requires_grad_(False)
        print("not for stdout")
"""
        + OFFER
    )
    (tmp_path / "conftest.py").write_text("raise Exception('this is the user\\'s own')")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --nonsense")
    done = ftkit("plugins", "check", "planted", "--json")
    assert list(broken(done)) == [
        "Frozen parameters, and the buffers of modules whose parameters are frozen, don't change",
        "Dropout inside what is frozen is off during training",
    ]
    reason = broken(done)["Dropout inside what is frozen is off during training"]
    assert reason.startswith(
        "TinyBackbone: frozen, but in training mode (freeze them with Strategy.freeze): ['backbone"
    )
    assert reason.endswith(" (and on 2 more)")
    assert done.err.splitlines()[-1].startswith(
        f"ftkit: {len(broken(done))} of 25 promises broken, the first by strategy planted: "
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conftest.py", "pytest.ini"]


def test_the_table_fits_a_terminal_of_80_columns_and_all_promises_are_in_it(plant, ftkit, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    plant("class Planted(Strategy):\n    def build(self):\n        self.freeze(self.backbone)\n" + OFFER)
    done = ftkit("plugins", "check", "planted")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.splitlines()[-1] == "25 kept"
    assert "strategy planted, of plugin planted" in done.out


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        ("while True: pass", "it took longer than 1 seconds"),
        ("raise SystemExit(0)", "SystemExit"),
        ("raise PluginError('Planted can not use it')", "it refuses every backbone: Planted can not use it"),
        ("import pytest; pytest.exit('all is well', returncode=0)", "pytest ended before it"),
        ("raise ValueError('two\\nlines')", "ValueError: two"),
    ],
)
def test_a_strategy_that_can_not_be_built_breaks_its_promises_whatever_it_does(plant, ftkit, build, reason):
    head = "from finetune_kit.errors import PluginError\nclass Planted(Strategy):\n    def build(self):\n        "
    plant(f"{head}{build}\n{OFFER}")
    started = time.monotonic()
    found = broken(ftkit("plugins", "check", "planted", "--seconds", "1", "--json"))
    assert any(reason in why for why in found.values()), found
    assert time.monotonic() - started < 30


def test_what_could_not_be_tried_is_not_called_kept(plant, ftkit):
    plant(
        "import pytest\nclass Planted(Strategy):\n    def build(self):\n        pytest.skip('trust me')\n" + OFFER,
    )
    done = ftkit("plugins", "check", "planted", "--json")
    states = {one["state"] for one in done.json if one["promise"].startswith("Saved and loaded")}
    assert states <= {"not checked", "broken"}


def test_a_plugin_that_breaks_when_imported_is_told(plant, ftkit):
    plant("raise RuntimeError('out of\\norder')")
    found = broken(ftkit("plugins", "check", "planted", "--json"))
    assert found == {"The plugin is imported, and offers what its hooks say": "RuntimeError: out of order"}


def test_an_interruption_interrupts(plant, ftkit):
    plant("class Planted(Strategy):\n    def build(self):\n        raise KeyboardInterrupt\n" + OFFER)
    assert ftkit("plugins", "check", "planted").code == 130


def test_a_contract_that_names_what_there_is_not_is_told(plant, ftkit):
    plant(
        "class Planted(Strategy):\n    def build(self):\n        pass\n"
        + OFFER.replace('Planted")]', 'Planted", contract={"epochs": 2})]')
    )
    found = broken(ftkit("plugins", "check", "planted", "--json"))
    assert found == {"Its contract can be set up": "StrategyContract has no attribute epochs"}


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_without_pytest_or_hypothesis_it_says_what_to_install_and_checks_the_rest(ftkit, monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find_spec(name))
    done = ftkit("plugins", "check", "uaf", "--json")
    assert done.code == 0
    assert {one["promise"] for one in done.json} == {
        "The plugin is imported, and offers what its hooks say",
        "It loads, is of its kind, and each of its options has a docstring",
    }
    assert f"no contract was tried: {missing} missing; pip install 'finetune-kit[testing]'" in " ".join(
        done.err.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [plugin.name for plugin in installed().loaded])
def test_every_built_in_plugin_keeps_its_promises(plugin, ftkit):
    done = ftkit("plugins", "check", plugin, "--json")
    assert [one for one in done.json if one["state"] == "broken"] == []
    assert done.code == 0


def test_a_time_limit_comes_again_until_the_block_gives_in():
    caught = 0
    with pytest.raises(TimeoutError), time_limit(0.05):
        while True:
            try:
                time.sleep(10)
            except TimeoutError:
                caught += 1
                if caught == 2:
                    raise
    assert caught == 2


def test_a_time_limit_ends_with_its_block():
    with time_limit(0.05):
        pass
    time.sleep(0.1)
