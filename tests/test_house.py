"""The house: which package and which room may import which, and what must answer without torch."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"egal_bench": ROOT, "egal_kernels": ROOT / "kernels", "egal_shards": ROOT / "shards"}
MAY_IMPORT = {"egal_bench": {"egal_kernels", "egal_shards"}, "egal_kernels": set(), "egal_shards": set()}

# The rooms of each package, lowest first: a room imports from itself and from the rooms before it. A module that lies
# in no folder is a room of its own; "*" stands for all modules that are not named.
ROOMS = {
    "egal_bench": (
        "errors", "interrupts", "files", "console", "plugins", "specifications", "parameters", "config", "dataset",
        "tables", "statistics", "strategies", "reports", "models", "scoring", "learners", "runs", "profiling",
        "querying", "cli", "__init__",
    ),
    "egal_kernels": ("*", "shared", "acquisition", "loss", "explanation", "__init__"),
    "egal_shards": ("*", "rasters", "dicom", "masks", "images", "packing", "sources", "__init__"),
}  # fmt: skip


def modules_of(package: str) -> dict[str, Path]:
    """Return the files of `package` by the name of their module."""
    root = PACKAGES[package]
    names = {}
    for file in sorted((root / package).rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    assert names, f"no source of {package} found"
    return names


def imports_of(file: Path, own: str) -> set[str]:
    """Return the modules that `file` imports anywhere, in functions too, but for those of type checkers alone."""
    tree = ast.parse(file.read_text())
    for_types: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types |= set(ast.walk(node))
    names = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names - {own}


def graph_of(package: str) -> dict[str, set[str]]:
    """Return for each module of `package` the modules of the package that it imports anywhere."""
    modules = modules_of(package)
    return {name: {other for other in imports_of(file, name) if other in modules} for name, file in modules.items()}


def room_of(module: str, package: str) -> int:
    """Return the place of a module's room in ROOMS."""
    rooms = ROOMS[package]
    first = module.removeprefix(package).strip(".").partition(".")[0] or "__init__"
    assert first in rooms or "*" in rooms, f"{module} is in no declared room of {package}: {rooms}"
    return rooms.index(first) if first in rooms else rooms.index("*")


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_packages_go_one_way(package):
    allowed = MAY_IMPORT[package] | {package}
    crossing = {}
    for name, file in modules_of(package).items():
        packages = {module.partition(".")[0] for module in imports_of(file, name)} & PACKAGES.keys()
        if packages - allowed:
            crossing[name] = packages - allowed
    assert crossing == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_from_a_room_above_it(package):
    upward = [
        f"{module} imports {other}"
        for module, others in graph_of(package).items()
        for other in others
        if room_of(other, package) > room_of(module, package) and other != package
    ]
    assert upward == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_do_not_import_each_other_in_a_circle(package):
    """Imports within functions count too. A package's own __init__, which only re-exports names, does not."""
    graph = graph_of(package)
    exporting = {name for name in graph if any(other.startswith(f"{name}.") for other in graph)}
    try:
        TopologicalSorter(
            {name: others - exporting for name, others in graph.items() if name not in exporting}
        ).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


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
    """Measure the CPU time of child processes, the least of five: the figure is a promise to users."""
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
