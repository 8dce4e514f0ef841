"""The contracts of `finetune_kit.testing`, tried on installed components by pytest in this process.

Nothing of pytest shows: it reads no settings of the user's, writes no cache, and prints nothing. Import this module
only where pytest and hypothesis are installed, and before `finetune_kit.testing`, so that pytest can tell what an
assertion compared.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetune_kit.cli.plugin_check import Finding, State
from finetune_kit.cli.time_limit import time_limit
from finetune_kit.component import Component

CONTRACTS = {
    "strategy": "StrategyContract",
    "backbone": "BackboneContract",
    "policy": "PolicyContract",
    "dataset": "DatasetContract",
}
"""Kind of component to its contract class; trackers promise nothing that could be tried."""
CONTRACT = "Its contract can be set up"
ARGUMENTS = ("-c", os.devnull, "--noconftest", "--continue-on-collection-errors", "--capture=fd", "-W", "default")
NOT_NEEDED = ("cacheprovider", "faulthandler")
SETTINGS = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_CURRENT_TEST")

Chosen = tuple[str, str, Component]
"""Plugin, kind, component."""


def try_promises(chosen: Iterable[Chosen], seconds: float, advance: Callable[[int], None]) -> list[Finding]:
    """Try the contract of each component; return one finding per promise.

    Args:
        chosen: What to try; kinds without a contract are passed over.
        seconds: How long one promise may take on one backbone.
        advance: Told, now and then, the share in percent that is done since it was told last.

    Raises:
        KeyboardInterrupt: When the user interrupts it.
    """
    trial = _Trial([one for one in chosen if one[1] in CONTRACTS], seconds, advance)
    plugins = [word for name in NOT_NEEDED for word in ("-p", f"no:{name}")]
    silence = io.StringIO()  # pytest captures what tests print, but not what is printed while they are collected
    with _undisturbed(), tempfile.TemporaryDirectory() as folder, redirect_stdout(silence):
        folders = (f"--rootdir={folder}", f"--basetemp={folder}/pytest")
        pytest.main([*ARGUMENTS, *plugins, *folders, __file__], plugins=[trial])
    if trial.is_interrupted:
        raise KeyboardInterrupt
    return [finding for contract in trial.contracts for finding in contract.findings()]


def promises_of(contract: type) -> dict[str, str]:
    """Return the promises of a contract class in its order: function to its name, the docstring's first line."""
    tests = [getattr(contract, name) for name in dir(contract) if name.startswith("test_")]
    tests.sort(key=lambda test: test.__code__.co_firstlineno)
    names = {test.__name__: (test.__doc__ or test.__name__).split("\n")[0] for test in tests}
    return {function: name.replace("``", "`").removesuffix(".") for function, name in names.items()}


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the user's settings from pytest, and what pytest changes of this process from lasting."""
    environment, bytecode = dict(os.environ), sys.dont_write_bytecode
    for name in SETTINGS:
        os.environ.pop(name, None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.dont_write_bytecode = bytecode


class _Contract:
    """The contract of one component, and what became of its promises."""

    def __init__(self, chosen: Chosen) -> None:
        self.plugin, self.kind, self.component = chosen
        self.promises: dict[str, str] = {}
        """Function to what it is called."""
        self.outcomes: dict[str, list[tuple[str, State, str]]] = {}
        """Function to what it was tried on, what came out, and the reason."""
        self.failure = "pytest ended before it"
        """Why a promise has no outcome."""

    def make_class(self) -> type:
        """Return the contract class for pytest to collect."""
        import finetune_kit.testing as testing

        contract: type = getattr(testing, CONTRACTS[self.kind])
        if unknown := [name for name in self.component.contract if not hasattr(contract, name)]:
            raise AttributeError(f"{contract.__name__} has no attribute {', '.join(unknown)}")
        self.promises = promises_of(contract)
        return type("Contract", (contract,), {self.kind: self.component.name, **self.component.contract})

    def findings(self) -> Iterator[Finding]:
        """Yield one finding per promise: broken where it is so on anything that it was tried on."""
        about = (self.plugin, self.kind, self.component.name)
        if not self.promises:
            yield Finding(*about, CONTRACT, "broken", self.failure)
        for function, promise in self.promises.items():
            outcomes = self.outcomes.get(function, [("", "broken", self.failure)])
            yield Finding(*about, promise, *_judgement(outcomes))


def _judgement(outcomes: list[tuple[str, State, str]]) -> tuple[State, str | None]:
    """Return a promise's state from those on all that it was tried on, and the first reason."""
    broken = [one for one in outcomes if one[1] == "broken"]
    if broken:
        where = f"{broken[0][0]}: " if broken[0][0] else ""
        more = f" (and on {len(broken) - 1} more)" if len(broken) > 1 else ""
        return "broken", f"{where}{broken[0][2]}{more}"
    if any(state == "kept" for _, state, _ in outcomes):
        return "kept", None
    return "not checked", outcomes[0][2]


class _Trial:
    """A plugin of pytest that gives it the contract classes and takes down what comes out."""

    def __init__(self, chosen: list[Chosen], seconds: float, advance: Callable[[int], None]) -> None:
        self.contracts = [_Contract(one) for one in chosen]
        self.is_interrupted = False
        self._seconds, self._advance = seconds, advance
        self._classes: dict[type, _Contract] = {}
        self._done, self._told, self._total = 0, 0, 1

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_pycollect_makemodule(self, module_path: Path, parent: Any) -> pytest.Module:
        made = _Module.from_parent(parent, path=module_path)
        made.contents = ModuleType("contracts")
        for number, contract in enumerate(self.contracts):
            try:
                made_class = contract.make_class()
            except Exception as error:  # e.g. what the plugin says of its contract
                contract.failure = _first_line(str(error))
                continue
            self._classes[made_class] = contract
            setattr(made.contents, f"Test{number:04}", made_class)
        return made

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, Any, Any]:
        with time_limit(self._seconds, pytest.fail.Exception):
            return (yield)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            for contract in self.contracts:
                contract.failure = _failure(report)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._total = max(1, len(items))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, Any, Any]:
        with time_limit(self._seconds, pytest.fail.Exception):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
        report = yield
        if report.when == "call" or not report.passed:
            where = item.callspec.id if hasattr(item, "callspec") else ""
            outcomes = self._classes[item.cls].outcomes.setdefault(item.originalname, [])
            outcomes.append((where, *_outcome(report, call)))
        return report

    def pytest_runtest_logfinish(self) -> None:
        self._done += 1
        percent = 100 * self._done // self._total
        self._advance(percent - self._told)
        self._told = percent

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.is_interrupted = excinfo.type is KeyboardInterrupt

    def pytest_internalerror(self, excrepr: Any) -> bool:
        for contract in self.contracts:
            contract.failure = _first_line(str(excrepr.reprcrash.message if excrepr.reprcrash else excrepr))
        return True  # it is told in the table


class _Module(pytest.Module):
    """A module that was not read from its file."""

    contents: ModuleType

    def _getobj(self) -> ModuleType:
        return self.contents


def _outcome(report: Any, call: pytest.CallInfo[None]) -> tuple[State, str]:
    """Return what a report says of a promise, and the reason in one line."""
    if report.passed:
        return "kept", ""
    if report.skipped:
        reason = str(call.excinfo.value) if call.excinfo else report.longreprtext
        nothing = reason.startswith("got empty parameter set")
        return "not checked", "it takes none of the backbones" if nothing else _first_line(reason)
    return "broken", _failure(report)


def _failure(report: Any) -> str:
    """Return why a report says failed, in one line."""
    crash = getattr(report.longrepr, "reprcrash", None)
    return _first_line(crash.message if crash else report.longreprtext)


def _first_line(text: str) -> str:
    """Return the first line of a failure that says something; of torch's comparisons, by how much values differ."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["failed without a word"]
    first = lines[0].removeprefix("AssertionError: ").removeprefix("Failed: ")
    difference = next((line for line in lines if line.startswith("Greatest absolute difference")), "")
    return f"{first} {difference}".strip()
