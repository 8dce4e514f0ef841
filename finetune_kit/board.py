"""What a study of several runs tells whoever waits for it, when they are carried out side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_kit.workers.telling import Step


class Board:
    """A silent board; the base of those that show something."""

    def begin(self, total: int, finished: int = 0) -> None:
        """Tell how many runs there are, and how many of them were finished before."""

    def there_already(self, number: int, title: str) -> None:
        """Tell of a run that was finished before."""

    def start(self, number: int, title: str) -> None:
        """Tell that a run has been handed out."""

    def step(self, number: int, step: Step) -> None:
        """Tell how far a run has come."""

    def said(self, title: str, text: str) -> None:
        """Tell a line that a run has for the user."""

    def end(self, number: int, title: str, fault: str = "", note: str = "") -> None:
        """Tell that a run has ended.

        Args:
            number: Its number.
            title: How it is called.
            fault: Why it failed; empty if it did not.
            note: What came of it.
        """

    def best(self, text: str) -> None:
        """Tell what has done best so far."""

    def close(self) -> None:
        """Tell that nothing follows."""
