"""What of RAPIDS' signatures this project uses: `python -m bench.rapids_signatures FOLDER` reads wheels.

FOLDER holds those of rmm, cudf-polars and cuml in the versions of requirements-rapids.lock (8 MB; none of
them is installed, and libcudf is not needed). Writes tests/no_card/rapids_signatures.json, which a test
compares with the lock, so that a new version of RAPIDS shows.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "tests" / "no_card" / "rapids_signatures.json"
RMM = "rmm/pylibrmm/memory_resource/_memory_resource.pyi"
CONFIG = "cudf_polars/utils/config.py"
CUML = "cuml/linear_model/logistic_regression.py"


def signatures(tree: ast.Module) -> dict[str, Any]:
    """Functions -> names of their parameters; classes -> the same of their own methods, and their bases."""
    found = dict[str, Any]()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = parameters(node)
        elif isinstance(node, ast.ClassDef):
            methods = {part.name: parameters(part) for part in node.body if isinstance(part, ast.FunctionDef)}
            found[node.name] = {"bases": [ast.unparse(base) for base in node.bases], "methods": methods}
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return [argument.arg for argument in named if argument.arg != "self"]


def wheel(folder: Path, package: str) -> tuple[str, zipfile.ZipFile]:
    (path,) = folder.glob(f"{package}-*.whl")
    return path.name.split("-")[1], zipfile.ZipFile(path)


def main() -> int:
    folder = Path(sys.argv[1])
    versions, files = dict[str, str](), dict[str, str]()
    for package, names in (
        ("rmm_cu13", [RMM, "rmm/mr/__init__.py"]),
        ("cudf_polars_cu13", [CONFIG, "cudf_polars/callback.py"]),
        ("cuml_cu13", [CUML, "cuml/solvers/qn.pyx"]),
    ):
        versions[package.replace("_", "-")], archive = wheel(folder, package)
        files |= {name: archive.read(name).decode() for name in names}
    rmm = signatures(ast.parse(files[RMM]))
    public = re.search(r"__all__ = (\[.*?\])", files["rmm/mr/__init__.py"], re.DOTALL)
    default = re.search(r'__EXECUTOR", "([a-z-]+)"\)', files[CONFIG])
    options = re.search(r"valid_options = (\{.*?\})", files[CONFIG], re.DOTALL)
    assert public
    assert default
    assert options
    used = set(ast.literal_eval(public[1])) & rmm.keys()
    found = {
        "versions": versions,
        "rmm.mr": {name: rmm[name] for name in sorted(used)},
        "cudf_polars": {
            "default_executor": default[1],
            "options": sorted(ast.literal_eval(options[1])),
            "executors": sorted(
                set(re.findall(r'executor\.name == "([a-z-]+)"', files["cudf_polars/callback.py"]))
            ),
        },
        "cuml": {
            "LogisticRegression": signatures(ast.parse(files[CUML]))["LogisticRegression"]["methods"][
                "__init__"
            ],
            "accept_sparse": re.findall(r"accept_sparse=(\S+?),", files["cuml/solvers/qn.pyx"]),
        },
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
