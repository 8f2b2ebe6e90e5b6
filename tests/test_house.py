"""The house of three packages: which may import which, and what must answer without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"egal_bench": ROOT, "egal_kernels": ROOT / "kernels", "egal_shards": ROOT / "shards"}
MAY_IMPORT = {"egal_bench": {"egal_kernels", "egal_shards"}, "egal_kernels": set(), "egal_shards": set()}


def imported(file: Path) -> set[str]:
    """Top-level names that `file` imports anywhere, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_the_packages_go_one_way(package):
    files = sorted((PACKAGES[package] / package).rglob("*.py"))
    assert files, f"no source of {package} found"
    allowed = MAY_IMPORT[package] | {package}
    crossing = {
        str(file.relative_to(ROOT)): found for file in files if (found := imported(file) & PACKAGES.keys() - allowed)
    }
    assert crossing == {}


COMMANDS = [
    *(["list", what] for what in ("strategies", "sources", "backbones", "conventions")),
    ["pack", "phantom", "brain", "set", "--samples=60", "--size=32"],
    ["verify", "set"],
]


def test_pack_verify_and_list_answer_without_torch(tmp_path):
    code = (
        "import sys; from egal_bench.cli import main; sys.argv = ['egal-bench', *sys.argv[1:]]\n"
        "try: main()\n"
        "except SystemExit as end: print('status', end.code, 'torch' in sys.modules)"
    )
    for words in COMMANDS:
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.stdout.splitlines()[-1] == "status 0 False", done.stdout + done.stderr
        assert len(done.stdout.splitlines()) > 1, words


def test_help_takes_at_most_three_tenths_of_a_second_of_cpu():
    """Children's CPU time, the least of five: the one test with a clock, since the figure is a promise to users."""
    code = (
        "import resource, subprocess, sys\n"
        "spent = []\n"
        "for _ in range(5):\n"
        "    before = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    subprocess.run([sys.argv[1], '--help'], check=True, capture_output=True)\n"
        "    after = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)\n"
        "print(min(spent))"
    )
    script = Path(sys.executable).with_name("egal-bench")
    done = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 0.3
