"""The rules of the house as functions; `python -m tests.house [PATH ...]` prints what breaks them below these paths."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.own_files import own_files

ROOT = Path(__file__).resolve().parents[1]
LAYERS = (  # lowest first; a package knows only those before it
    {"errors", "paths", "config", "files", "locks", "events", "processes", "best_effort"},
    {"gpu"},
    {"artifact"},
    {"predictor"},
    {"data"},
    {"run"},
    {"training"},
    {"step"},
    {"memory"},
    {"tracking"},
    {"night"},
    {"services"},
    {"orchestration"},
    {"cli"},
)
RANK = {name: number for number, names in enumerate(LAYERS) for name in names}
WIDTH, ROOT_MODULES, SMALL = 110, 13, 80
FILE_LINES, TEST_LINES = 400, 500
HEAVY = ("torch", "prefect", "mlflow", "polars", "sklearn", "pandas")  # seconds to import
BANNED = re.compile(
    r"\b(knots?|bells?|crowds?|witness\w*|ballast|survivors?|owed|owes|told|obituary|loose_end|gives_way|gone_on"
    r"|whoever|nobodys?|debts?)\b|_(knot|bell|crowd|witness|told|owed)\b|\b(knot|bell|crowd|witness|told|owed)_",
    re.IGNORECASE,
)
ENGLISH = re.compile(r"^(told|crowds?|bells?|debts?)$", re.IGNORECASE)  # words of prose, but no names


@cache
def tree(text: str) -> ast.Module:
    return ast.parse(text)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def code(*folders: str) -> list[Path]:
    """The project's own Python files below these folders of the checkout."""
    return own_files(*(f"{folder}/*.py" for folder in folders), root=ROOT)


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(module, line) of every import of a file: at its top, inside functions, and under TYPE_CHECKING."""
    return imports_of(name_of(path), path.read_text(encoding="utf-8"))


def imports_of(name: str, text: str) -> Iterator[tuple[str, int]]:
    """The same of a file called so in the checkout, with this text."""
    for node in ast.walk(tree(text)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folders = name.split("/")[:-1]
            base = folders[: len(folders) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def unit(module: str) -> str:
    """The package or module directly below overnight/ that a dotted name belongs to; empty for all others."""
    parts = module.split(".")
    return parts[1] if parts[0] == "overnight" and len(parts) > 1 and parts[1] in RANK else ""


def upward_imports() -> list[str]:
    """Imports of a layer from one that is not below it.

    overnight/__init__ is the face: it may import all, and no module of a layer may import from it.
    """
    found = []
    for path in code("overnight"):
        own = unit(name_of(path).removesuffix(".py").replace("/", "."))
        if not own:
            continue
        for module, line in imports(path):
            other = unit(module)
            face = module.split(".")[0] == "overnight" and not other
            higher = other and other != own and RANK[other] >= RANK[own] and (RANK[own] or RANK[other])
            if face or higher:
                found.append(f"{name_of(path)}:{line}: {own} imports {module}")
    return found


def without_a_layer() -> list[str]:
    """Modules and packages directly below overnight/ that LAYERS does not name."""
    names = {path.relative_to(ROOT / "overnight").parts[0].removesuffix(".py") for path in code("overnight")}
    return [f"overnight/{name}: not in LAYERS" for name in sorted(names - set(RANK) - {"__init__"})]


def wrong_directions(name: str, text: str) -> list[str]:
    """The imports of a file that the direction flows -> tasks -> overnight forbids, and those of another family."""
    layer, unit = name.split("/", maxsplit=1)[0], name.split("/")[1].removesuffix(".py")
    banned = {
        "overnight": {"flows", "tasks"},
        "tasks": {"flows", "prefect", "mlflow"},
        "flows": {"prefect", "mlflow", *HEAVY},
    }[layer]
    found = [(module.split("."), line) for module, line in imports_of(name, text)]
    return [
        f"{name}:{line}: imports {'.'.join(parts)}"
        for parts, line in found
        if parts[0] in banned or (layer == parts[0] == "tasks" and parts[1:2] not in ([unit], ["shared"]))
    ]


def misdirected(path: Path) -> list[str]:
    layered = name_of(path).startswith(("overnight/", "tasks/", "flows/"))
    return wrong_directions(name_of(path), path.read_text(encoding="utf-8")) if layered else []


def long_file(path: Path) -> list[str]:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = TEST_LINES if name_of(path).startswith("tests/") else FILE_LINES
    return [f"{name_of(path)}: {lines} lines, at most {limit}"] if lines > limit else []


def circles() -> list[list[str]]:
    """Modules that import one another in a circle, lazy imports and those for type checking counted."""
    import networkx as nx

    graph = nx.DiGraph()
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in code("overnight", "tasks", "flows")
    }
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    for name, path in names.items():
        found = {module if module in names else module.rpartition(".")[0] for module, _line in imports(path)}
        used = {module for module in found if module in names} - {name, "overnight"}
        graph.add_edges_from((name, module) for module in used)
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def wide_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [
        f"{name_of(path)}:{n}: {len(line)} characters" for n, line in enumerate(lines, 1) if len(line) > WIDTH
    ]


def dense_expressions(path: Path) -> list[str]:
    """A conditional expression inside another, and a walrus inside a comprehension."""
    found = []
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for node in ast.walk(tree(path.read_text(encoding="utf-8"))):
        if not isinstance(node, (ast.IfExp, *comprehensions)):
            continue
        inner = [n for n in ast.walk(node) if n is not node]
        if isinstance(node, ast.IfExp) and any(isinstance(n, ast.IfExp) for n in inner):
            found.append(f"{name_of(path)}:{node.lineno}: nested conditional expression")
        if isinstance(node, comprehensions) and any(isinstance(n, ast.NamedExpr) for n in inner):
            found.append(f"{name_of(path)}:{node.lineno}: walrus in a comprehension")
    return found


def banned_names(path: Path) -> list[str]:
    """Words of a private language: in identifiers and file names; in prose those that are never plain English."""
    text = path.read_text(encoding="utf-8")
    found = [f"{name_of(path)}: file name"] if BANNED.search(path.stem) else []
    for node in ast.walk(tree(text)):
        names = [getattr(node, field, None) for field in ("id", "attr", "arg", "name", "asname")]
        seen = [name for name in names if isinstance(name, str) and BANNED.search(name)]
        found += [f"{name_of(path)}:{getattr(node, 'lineno', 0)}: {name}" for name in seen]
    for number, line in enumerate(text.splitlines(), 1):
        words = [match[0] for match in BANNED.finditer(line)]
        found += [f"{name_of(path)}:{number}: {word}" for word in words if not ENGLISH.match(word)]
    return list(dict.fromkeys(found))


def importers() -> dict[str, set[str]]:
    """Files of the product that import each module of overnight/ and tasks/."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in code("overnight", "tasks")}
    found: dict[str, set[str]] = {name: set() for name in names if not name.endswith("__init__")}
    for path in code("overnight", "tasks", "flows"):
        for module, _line in imports(path):
            for name in (module, module.rpartition(".")[0]):
                if name in found:
                    found[name].add(name_of(path))
    return found


OWN_FILE = (  # a format, a net, a family, or a program that is started by its name
    "overnight.data.readers.",
    "overnight.memory.architectures.",
    "tasks.vision.nets.",
    "overnight.cli.",
)


def small_satellites() -> list[str]:
    """Modules of under 80 lines that one other module imports."""
    found = []
    for name, users in importers().items():
        path = ROOT / (name.replace(".", "/") + ".py")
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if (
            len(users) == 1
            and lines < SMALL
            and name.startswith("overnight.")
            and not name.startswith(OWN_FILE)
        ):
            found.append(f"{name_of(path)}: {lines} lines, only {users.pop()} imports it")
    return found


def full_root() -> list[str]:
    """The modules at the engine's root, when they are too many."""
    names = sorted(path.name for path in (ROOT / "overnight").glob("*.py"))
    return [f"overnight/: {len(names)} modules, at most {ROOT_MODULES}"] if len(names) > ROOT_MODULES else []


def tests_without_a_place() -> list[str]:
    """Test files in a folder that mirrors none of the product."""
    found = []
    for path in own_files("tests/*test_*.py", root=ROOT):
        folder = path.parent.relative_to(ROOT / "tests")
        places = (ROOT / "overnight" / folder, ROOT / folder)
        own = folder.parts[:1] in (("chaos",), ("on_card",), ("no_card",))
        if not own and not any(place.is_dir() for place in places):
            found.append(name_of(path))
    return found


def broken(paths: list[Path]) -> list[str]:
    """Every rule that looks at one file."""
    return [
        line
        for path in paths
        for rule in (wide_lines, dense_expressions, banned_names, long_file, misdirected)
        for line in rule(path)
    ]


def main() -> int:
    chosen = [ROOT / name for name in sys.argv[1:]] or [
        ROOT / name for name in ("overnight", "tasks", "flows", "bench")
    ]
    files = sorted(path for place in chosen for path in ([place] if place.is_file() else place.rglob("*.py")))
    lines = broken([path for path in files if ROOT / "bench" / "out" not in path.parents])
    if not sys.argv[1:] or any(name.startswith("overnight") for name in sys.argv[1:]):
        below = tuple(sys.argv[1:]) or ("",)
        whole = upward_imports() + small_satellites() + without_a_layer() + full_root()
        lines += [line for line in whole if line.startswith(below)]
    if not sys.argv[1:]:
        lines += [f"circle: {', '.join(group)}" for group in circles()]
        lines += [f"{name}: its folder mirrors none of the product" for name in tests_without_a_place()]
        lines += [line for path in code("tests") for line in long_file(path)]
    print("\n".join(lines) or "no rule is broken")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
