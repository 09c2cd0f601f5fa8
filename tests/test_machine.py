"""runtime/machine.py: cores a container may use, from made-up cgroup trees, and what is said of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxpress.runtime import machine
from onnxpress.runtime.machine import (
    Machine,
    _cgroup_cpu_quota,
    cgroup_memory_bytes,
    describe_machine,
    peak_memory_bytes,
    usable_cores,
    versions,
)


class Tree:
    """A made-up cgroup file system and /proc/self/cgroup."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "cgroup"
        self.root.mkdir()
        self.membership = folder / "self"

    def joined(self, *lines: str) -> Tree:
        self.membership.write_bytes(os.fsencode("".join(f"{line}\n" for line in lines)))
        return self

    def v2(self, group: str, content: str) -> Tree:
        folder = self.root / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.max").write_text(content + "\n")
        return self

    def v1(self, group: str, quota: int | str, period: int | str = 100_000) -> Tree:
        folder = self.root / "cpu" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")
        return self

    @property
    def quota(self) -> float | None:
        return _cgroup_cpu_quota(self.root, self.membership)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_version_2_limit_of_the_own_group(tree: Tree) -> None:
    assert tree.joined("0::/a/b").v2("a/b", "150000 100000").quota == 1.5


@pytest.mark.parametrize(("outer", "inner", "expected"), [(2, 4, 2.0), (4, 2, 2.0)])
def test_version_2_takes_the_tightest_limit_on_the_way_up(tree: Tree, outer: int, inner: int, expected: float) -> None:
    tree.joined("0::/pod/container").v2("pod", f"{outer}00000 100000").v2("pod/container", f"{inner}00000 100000")
    assert tree.quota == expected


def test_version_2_max_is_no_limit_but_leaves_those_above(tree: Tree) -> None:
    tree.joined("0::/pod/container").v2("pod/container", "max 100000")
    assert tree.quota is None
    assert tree.v2("pod", "300000 100000").quota == 3.0


def test_version_2_inside_a_cgroup_namespace_looks_at_the_root(tree: Tree) -> None:
    assert tree.joined("0::/").v2("", "50000 100000").quota == 0.5


def test_version_2_group_named_as_the_host_sees_it_but_mounted_at_the_root(tree: Tree) -> None:
    assert tree.joined("0::/system.slice/docker-0.scope").v2("", "200000 100000").quota == 2.0


def test_version_1_nested_limits_and_minus_one(tree: Tree) -> None:
    tree.joined("4:memory:/other", "3:cpu,cpuacct:/pod/container", "1:name=systemd:/init")
    assert tree.v1("pod/container", -1).quota is None
    assert tree.v1("pod", 250_000).quota == 2.5
    assert tree.v1("", 100_000, 50_000).quota == 2.0
    assert tree.v1("pod/container", 50_000).quota == 0.5


def test_limits_of_other_groups_and_controllers_do_not_count(tree: Tree) -> None:
    tree.joined("2:cpuset:/x", "1:cpu:/mine").v1("mine", 400_000).v1("mine/child", 100_000).v1("x", 100_000)
    assert tree.quota == 4.0


def test_both_versions_mounted_side_by_side(tree: Tree) -> None:
    tree.joined("1:cpu:/job", "0::/").v1("job", 200_000)
    assert tree.quota == 2.0


@pytest.mark.parametrize("content", ["", "max", "many 100000", "100000 100000 100000", "100000 0"])
def test_version_2_files_that_say_nothing_are_no_limit(tree: Tree, content: str) -> None:
    assert tree.joined("0::/").v2("", content).quota is None


@pytest.mark.parametrize(
    ("quota", "period"), [("", "100000"), ("x", "100000"), (100_000, ""), (100_000, 0), (0, 100_000)]
)
def test_version_1_files_that_say_nothing_are_no_limit(tree: Tree, quota: int | str, period: int | str) -> None:
    assert tree.joined("1:cpu:/").v1("", quota, period).quota is None


def test_the_memory_of_the_smallest_group_counts(tree: Tree) -> None:
    tree.joined("0::/a/b").v2("a/b", "max 100000").v2("a", "max 100000")
    assert cgroup_memory_bytes(tree.root, tree.membership) is None
    (tree.root / "a" / "b" / "memory.max").write_text("max\n")
    (tree.root / "a" / "memory.max").write_text("2000000000\n")
    assert cgroup_memory_bytes(tree.root, tree.membership) == 2_000_000_000
    (tree.root / "a" / "b" / "memory.max").write_text("1000000000\n")
    assert cgroup_memory_bytes(tree.root, tree.membership) == 1_000_000_000


def test_memory_of_version_1(tree: Tree) -> None:
    folder = tree.joined("4:memory:/a", "3:cpu,cpuacct:/a").root / "memory" / "a"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert cgroup_memory_bytes(tree.root, tree.membership) is None
    (folder / "memory.limit_in_bytes").write_text("536870912\n")
    assert cgroup_memory_bytes(tree.root, tree.membership) == 2**29


def test_no_cgroups_are_no_limit(tree: Tree) -> None:
    assert tree.quota is None
    assert tree.joined("0::/anything", "1:cpu:/anything").quota is None


def test_lines_that_are_none_are_passed_over_and_groups_may_have_any_name(tree: Tree) -> None:
    tree.joined("", "nonsense", "0::/b\udcff").v2("b\udcff", "150000 100000")
    assert tree.quota == 1.5


def test_a_group_outside_of_the_namespace_is_bounded_by_its_root(tree: Tree) -> None:
    assert tree.joined("0::/../../other").v2("", "100000 100000").quota == 1.0


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (0.25, 1), (1.0, 1), (1.4, 1), (2.5, 3), (3.6, 4), (64.0, 4)]
)
def test_cores_are_bounded_by_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(machine, "_core_of", lambda cpu: str(cpu // 2))  # two threads on each core
    monkeypatch.setattr(machine, "_cgroup_cpu_quota", lambda: quota)
    assert usable_cores() == expected


def test_cores_here() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_affinity_bounds_the_cores() -> None:
    first = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{first}])\n"
    code += "from onnxpress.runtime.machine import usable_cores; print(usable_cores())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "1\n"


def fake_machine(*features: str, cores: int = 2) -> Machine:
    return Machine("any", "x86_64", cores, features, 2**30, "Linux 6", "3.11", None)


def test_the_key_changes_with_what_changes_a_measurement() -> None:
    assert fake_machine("avx2").key() == fake_machine("avx2").key()
    assert len({fake_machine("avx2").key(), fake_machine("avx").key(), fake_machine("avx2", cores=4).key()}) == 3


def test_the_machine_here_is_described() -> None:
    here = describe_machine()
    assert here.cpu
    assert here.cores == usable_cores()
    assert here.memory_bytes > 2**28
    assert here.python == sys.version.split()[0]
    flags = Path("/proc/cpuinfo").read_text().split()
    assert set(here.cpu_features) <= set(flags)
    if here.architecture == "x86_64" and "avx2" in flags:
        assert "avx2" in here.cpu_features


def test_arm_calls_its_flags_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_info", lambda: {"Features": "fp asimd asimddp i8mm aes"})
    assert describe_machine.__wrapped__().cpu_features == ("asimd", "asimddp", "i8mm")


def test_versions_are_those_installed() -> None:
    found = versions()
    assert found["numpy"] == __import__("numpy").__version__
    assert found["onnxpress"] == __import__("onnxpress").__version__
    assert ("onnxruntime" in found) != ("onnxruntime-gpu" in found)


def test_peak_memory_grows_with_what_a_process_holds_and_starts_anew_in_a_child() -> None:
    ballast = bytearray(os.urandom(1)) * (200 * 2**20)
    own = peak_memory_bytes()
    assert own is not None
    assert own > len(ballast)
    code = "from onnxpress.runtime.machine import peak_memory_bytes as peak\n"
    code += "before = peak(); held = bytearray(b'x') * 100_000_000; print(before, peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, child.stdout.split())
    assert before < 100_000_000  # not the parent's
    assert after - before > 90_000_000
