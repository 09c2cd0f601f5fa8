"""`onnxpress doctor [BUNDLE]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from onnxpress.runtime.diagnosis import Diagnosis, Serving
    from onnxpress.runtime.providers import ProviderStatus

HELP = "Say which execution providers can be used here and why not, what this process may use, and what would serve."

_LABEL_WIDTH = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", help="a bundle, to see how it would be served here")
    parser.add_argument("--variant", help="of the bundle (default: the bundle's default)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Look and tell."""
    from onnxpress.runtime.bundle import open_bundle
    from onnxpress.runtime.diagnosis import diagnose
    from onnxpress.runtime.errors import InvalidInputError

    if arguments.variant and not arguments.bundle:
        raise InvalidInputError("--variant is of a bundle; give the bundle, too")
    found = diagnose(open_bundle(arguments.bundle) if arguments.bundle else None, arguments.variant)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
    else:
        _show(found)
    return 0


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120  # a pipe has no width
    console.print(_labelled(_machine_facts(found)))
    console.print()
    console.print(_provider_table([status for status in found.providers if status.in_wheel]))
    others = [status for status in found.providers if not status.in_wheel]
    console.print(Text(_others(others) if others else "", style="dim"))
    console.print()
    for serving in found.serving:
        console.print(_labelled(_serving_facts(serving), last="" if serving.as_expected else "yellow"))


def _machine_facts(found: Diagnosis) -> Iterator[tuple[str, str]]:
    machine, limits, runtime = found.machine, found.limits, found.onnxruntime
    yield "processor", f"{machine.cpu} ({machine.architecture})"
    yield "features", " ".join(machine.cpu_features) or "none that matter, or not readable"
    quota = "no CPU limit" if limits.cgroup_cpus is None else f"{limits.cgroup_cpus:g} CPUs"
    memory = "no memory limit" if limits.cgroup_memory_bytes is None else _gigabytes(limits.cgroup_memory_bytes)
    yield (
        "cores",
        (
            f"{machine.cores} used: {limits.allowed_cpus} of {limits.logical_cpus} logical processors allowed, "
            f"hyper-threads counted once, {quota} from the cgroup"
        ),
    )
    yield "memory", f"{_gigabytes(machine.memory_bytes)}, {memory} from the cgroup"
    yield "system", f"{machine.system}, Python {machine.python}"
    built = f", built for CUDA {runtime.cuda_version}" if runtime.cuda_version else ""
    yield "onnxruntime", f"{runtime.package} {runtime.version}{built}"
    shown = {name: version for name, version in found.versions.items() if name != runtime.package}
    yield "versions", ", ".join(f"{name} {version}" for name, version in shown.items())


def _serving_facts(serving: Serving) -> Iterator[tuple[str, str]]:
    if serving.variant is not None:
        yield "variant", f"{serving.variant}, {'verified' if serving.verified else 'not verified'} on this provider"
    tuned = f", tuned for {serving.tuned_for}" if serving.tuned_for else ""
    yield "plan", f"{' > '.join(serving.providers)}, {serving.threads} thread{'s' * (serving.threads != 1)}{tuned}"
    yield "", serving.sentence


def _labelled(facts: Iterable[tuple[str, str]], last: str = "") -> Table:
    """Facts with their labels; `last`: the style of the last one."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(width=_LABEL_WIDTH, no_wrap=True)
    table.add_column()
    rows = list(facts)
    for index, (label, fact) in enumerate(rows, 1):
        table.add_row(Text(label, style="dim"), Text(fact, style=last if index == len(rows) else ""))
    return table


def _provider_table(statuses: Sequence[ProviderStatus]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("provider", no_wrap=True)
    table.add_column("usable", no_wrap=True)
    table.add_column("why, and what to do")
    for status in statuses:
        remedy = f"-> {status.remedy}" if status.remedy else None
        lines = [status.reason, remedy] if status.reason else [", ".join(status.devices), *status.notes]
        told = "\n".join(line for line in lines if line)
        style = "green" if status.usable else "red"
        table.add_row(Text(status.name), Text("yes" if status.usable else "no", style=style), Text(told))
    return table


def _others(statuses: Sequence[ProviderStatus]) -> str:
    """Providers that another onnxruntime would have, and which package brings it."""
    from onnxpress.runtime.providers.names import package_of, short_name

    named = []
    for status in statuses:
        package = package_of(status.name)
        named.append(f"{short_name(status.name)} ({package})" if package else short_name(status.name))
    return f"not in this onnxruntime: {', '.join(named)}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
