"""What is installed, what may import what, and how large things may grow."""

import ast
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house import HEAVY, imports, name_of
from tests.support.own_files import own_files

ROOT = Path(__file__).resolve().parent.parent
CODE = own_files("overnight/*.py", "tasks/*.py", "flows/*.py", "bench/*.py")

CONFIG_LINES = 40
CATCH_ALL = {
    f"overnight/{name}.py"
    for name in (
        "orchestration/child",
        "orchestration/attempt",
        "best_effort",
    )
}  # what was raised becomes a reason there, or goes on elsewhere


def python(script: str, folder: Path) -> list[str]:
    """The lines that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# ------------------------------------------------------------------------------------------------ what is installed


def test_data_sets_hold_no_python() -> None:
    assert own_files("datasets/*.py") == []


def test_the_name_datasets_is_left_to_others() -> None:
    spec = importlib.util.find_spec("datasets")
    assert spec is None or spec.origin is None or ROOT not in Path(spec.origin).parents


def test_tasks_and_flows_are_those_of_this_checkout(tmp_path: Path) -> None:
    script = (
        "import flows, overnight, tasks; print(flows.__file__, overnight.__file__, tasks.__file__, sep='\\n')"
    )
    assert [Path(line).parent.parent for line in python(script, tmp_path)] == [ROOT, ROOT, ROOT]


def test_a_package_of_the_same_name_on_pythonpath_does_not_win(tmp_path: Path, monkeypatch) -> None:
    for name in ("flows", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    script = "import overnight, flows.vision, tasks; print(flows.__file__, tasks.__file__, sep='\\n')"
    assert [Path(line).parent.parent for line in python(script, tmp_path)] == [ROOT, ROOT]


def test_no_flow_hides_an_installed_library() -> None:
    """A flow that is loaded by its path puts flows/ in front of everything."""
    installed = set(importlib.metadata.packages_distributions()) | set(sys.stdlib_module_names)
    assert ({path.stem for path in own_files("flows/*.py")} - {"__init__"}) & installed == set()


def test_the_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    script = f"import hatchling.build; print(hatchling.build.build_wheel({str(tmp_path)!r}))"
    python(script, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"overnight"}


# ------------------------------------------------------------------------------------------------ who imports whom


def test_every_task_lies_in_a_family() -> None:
    files = own_files("tasks/*.py")
    families = {path.parent.name for path in files} - {"tasks"}
    assert families >= {"tabular", "vision", "detection", "graphs", "rl", "shared"}
    assert [path.name for path in files if path.parent.name == "tasks"] == ["__init__.py"]


def test_prefect_is_imported_in_one_module_and_by_the_services() -> None:
    users = {
        name_of(path)
        for path in CODE
        if any(module.split(".")[0] == "prefect" for module, _line in imports(path))
    }
    services = {name for name in users if name.startswith("overnight/services/")}
    assert users - services - {name for name in users if name.startswith("bench/")} == {
        "overnight/orchestration/prefect.py"
    }


def swallows(path: Path) -> bool:
    """Whether it catches everything and does not raise it again."""
    handlers = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
    ]
    wide = [
        h
        for h in handlers
        if h.type is None or (isinstance(h.type, ast.Name) and h.type.id in {"Exception", "BaseException"})
    ]
    return any(not isinstance(h.body[-1], ast.Raise) for h in wide)


def test_only_the_borders_swallow_everything() -> None:
    assert {name_of(path) for path in CODE if swallows(path)} - CATCH_ALL == set()


@pytest.mark.parametrize("arguments", [["ls"], ["--help"], ["data", "ls"]], ids=" ".join)
def test_listing_loads_no_heavy_library(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom overnight.cli.main import main\n"
        f"try: code = main({arguments!r})\nexcept SystemExit as end: code = end.code\n"
        f"print('loaded', [name for name in {HEAVY!r} if name in sys.modules], code or 0)"
    )
    assert python(script, ROOT)[-1] == "loaded [] 0"


def test_flows_load_no_heavy_library() -> None:
    heavy = (*HEAVY, "matplotlib", "scipy", "torchvision", "gymnasium", "stable_baselines3")
    script = (
        "import sys\nfrom overnight.step import flow_names, load_pipeline\n"
        "print([load_pipeline(name).name for name in flow_names()])\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    flows, loaded = python(script, ROOT)
    assert "'nightly'" in flows
    assert loaded == "[]"


# ------------------------------------------------------------------------------------------------ how large things may grow


def test_configs_stay_short() -> None:
    lines = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in own_files("configs/*.yaml")
    }
    assert {name: count for name, count in lines.items() if count > CONFIG_LINES} == {}


# ------------------------------------------------------------------------------------------------ what may not be in the repository

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.~-])/(?:work|root|Users|home/(?!me\b|you\b)\w+)/",
    "a package index": r"https?://[\w.-]*(?:pythonhosted\.org|download\.pytorch\.org|/simple/)|pypi\.org/simple",
}


def test_tracked_files_name_no_machine_and_no_index() -> None:
    found = []
    for path in own_files("*"):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
        for what, pattern in FORBIDDEN.items():
            found += [
                f"{name_of(path)}: {what}: {match[0]}"
                for match in re.finditer(pattern, text)
                if path != Path(__file__).resolve()
            ]
    assert found == []


def test_nothing_large_is_tracked() -> None:
    sizes = {name_of(path): path.stat().st_size for path in own_files("*")}
    assert {name: size for name, size in sizes.items() if size > 1_000_000} == {}
