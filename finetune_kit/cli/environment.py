"""`ftkit env`: what to put into a bug report."""

from __future__ import annotations

from finetune_kit.cli.listings import Json
from finetune_kit.cli.output import print_json, stdout, table


def env(json: Json = False) -> None:
    """Show versions, devices and plugins: what a bug report needs."""
    import platform

    import torch

    from finetune_kit.environment import versions
    from finetune_kit.plugins import installed

    devices = ["cpu", *(torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    facts = {
        **versions(),
        "platform": platform.platform(),
        "devices": ", ".join(devices),
        "threads": str(torch.get_num_threads()),
        "plugins": ", ".join(plugin.name + (" (disabled)" if plugin.failure else "") for plugin in installed().loaded),
    }
    if json:
        print_json(facts)
        return
    shown = table("", "what", "value")
    for name, value in facts.items():
        shown.add_row(name, value)
    stdout().print(shown)
