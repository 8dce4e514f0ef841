"""An environment of its own for a test, in which a plugin's project is installed as its users would install it."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""What pip is told by the environment; its 0 stands for "no isolation"."""


class ScratchEnvironment:
    """A fresh virtual environment that finds what is installed in this one, finetune-kit too, and may be written to.

    Args:
        folder: Where it is made, beside a cache for `ftkit`.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder / "venv", with_pip=False)
        self.bin = folder / "venv" / "bin"
        site = next((folder / "venv").glob("lib/python*/site-packages"))
        # addsitedir reads the .pth files there, by which an editable install is found.
        (site / "outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
        for command, code in {
            "ftkit": "from finetune_kit.cli.main import main; main()",
            "pip": "import runpy; runpy.run_module('pip', run_name='__main__')",
        }.items():
            script = self.bin / command
            script.write_text(f"#!{self.bin / 'python'}\n{code}\n")
            script.chmod(0o755)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
            **OFFLINE,
            "PATH": os.pathsep.join([str(self.bin), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "VIRTUAL_ENV": str(folder / "venv"),
            "FTKIT_CACHE": str(folder / "cache"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, command: str, cwd: Path, code: int = 0) -> str:
        """Run a line of shell; return its stdout, or its stderr where it is to fail with another code."""
        done = subprocess.run(
            command, shell=True, cwd=cwd, env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stderr if code else done.stdout
