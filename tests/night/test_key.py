"""The key: it changes with what decides a result and with nothing else."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overnight import Artifact, DataSpec, Params, Run, runtime_option, step
from overnight.data.dataset import Dataset
from overnight.data.file_set import DataFile
from overnight.errors import ConfigError
from overnight.files import source_sha256
from overnight.gpu.card import Card
from overnight.night.key import covered_files, key, library_versions, parts
from tasks.vision.cnn import CnnParams, train_cnn

ROOT = Path(__file__).resolve().parents[2]


class CountParams(Params):
    upto: int = 3
    micro_batch: int | None = runtime_option(None, "memory only")


@step
def count(run: Run, params: CountParams, source: Artifact | None = None) -> Artifact:
    """Count."""
    return run.save("count", meta={"upto": params.upto})


def test_the_key_follows_values_data_seed_and_nothing_else(tmp_path):
    one = Artifact(kind="images", path=tmp_path, digest="d1", spec=DataSpec(nodes=3))
    moved = Artifact(kind="images", path=tmp_path / "elsewhere", digest="d1", spec=DataSpec(nodes=3))
    other = Artifact(kind="images", path=tmp_path, digest="d2")
    plain = key(count, 0, [CountParams(), one])
    assert plain == key(count, 0, [CountParams(micro_batch=8, exclusive=True), moved])
    different = {
        key(count, 0, [CountParams(upto=4), one]),
        key(count, 1, [CountParams(), one]),
        key(count, 0, [CountParams(), other]),
        key(count, 0, [CountParams(), one.model_copy(update={"spec": DataSpec(nodes=4)})]),
    }
    assert len(different | {plain}) == 5


def test_a_data_set_enters_the_key_by_its_digests():
    def entry(sha, about=""):
        return Dataset(
            name="x", kind="table", reader="csv", files=[DataFile(path="a.csv", sha256=sha * 64)], about=about
        )

    assert key(count, 0, [entry("a")]) == key(count, 0, [entry("a", "other words")])
    assert key(count, 0, [entry("a")]) != key(count, 0, [entry("b")])


def test_of_several_allowed_files_the_one_that_is_here_enters_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    file = tmp_path / "datasets" / "x" / "a.csv"
    file.parent.mkdir(parents=True)
    either = [hashlib.sha256(text).hexdigest() for text in (b"one", b"two")]
    entry = Dataset(name="x", kind="table", reader="csv", files=[DataFile(path="a.csv", sha256=either)])
    missing = key(count, 0, [entry])
    file.write_bytes(b"one")
    assert key(count, 0, [entry]) == missing  # what is downloaded is no change
    file.write_bytes(b"two")
    assert key(count, 0, [entry]) != missing


def test_the_content_of_a_file_that_a_value_names_enters_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))

    class FileParams(Params):
        words: dict[str, Path]

    params = FileParams(words={"stop": Path("stop.txt")})
    (tmp_path / "stop.txt").write_text("a")
    plain = key(count, 0, [params])
    (tmp_path / "stop.txt").write_text("b")
    assert key(count, 0, [params]) != plain


def test_the_file_of_weights_that_a_net_begins_with_enters_its_key(tmp_path):
    file = tmp_path / "net.safetensors"
    images = Artifact(kind="images", path=tmp_path, digest="d")
    file.write_bytes(b"one")
    plain = parts(train_cnn, 0, [CnnParams(init=str(file)), images])
    file.write_bytes(b"two")
    now = parts(train_cnn, 0, [CnnParams(init=str(file)), images])
    assert {name for name in now if now[name] != plain[name]} == {"argument params"}


def test_the_module_that_a_value_names_is_covered(tmp_path, monkeypatch):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))

    class EnvParams(Params):
        env: dict[str, list[str]]

    (tmp_path / "my_envs.py").write_text("import networkx\n")
    found = parts(count, 0, [EnvParams(env={"some": ["my_envs:Maze-v0", "polars:x", "12:30", "a: b"]})])
    assert {"code my_envs.py", "version networkx", "version polars"} <= set(found)


def test_the_reader_inside_a_package_is_covered():
    entry = Dataset(
        name="x", kind="table", reader="package", options={"module": "x", "reader": "csv", "folder": "y"}
    )
    assert "code overnight/data/readers/csv.py" in parts(count, 0, [entry.model_copy(update={"files": []})])


def test_a_name_enters_the_parts_so_that_two_keys_can_be_compared():
    before, after = (parts(count, 0, [CountParams(upto=upto)]) for upto in (3, 4))
    assert {name for name in before if before[name] != after[name]} == {"argument params"}


def digest(folder, text):
    file = folder / "module.py"
    file.write_text(text)
    return source_sha256([file])


def test_comments_docstrings_layout_and_messages_are_not_covered(tmp_path):
    code = 'def f(run, x):\n    if x < 1:\n        raise ValueError("too small")\n    run.note(f"got {x}")\n    return {"a": x}\n'
    same = [
        code.replace("    return", "    # why\n\n    return"),
        code.replace("    if", '    """Say."""\n    if', 1),
        code.replace("too small", "is too small"),
        code.replace("got {x}", "there are {x} of them"),
        code.replace('f"got {x}"', '"got it"'),
    ]
    assert {digest(tmp_path, text) for text in same} == {digest(tmp_path, code)}
    other = [code.replace("< 1", "< 2"), code.replace('"a"', '"b"'), code.replace("ValueError", "KeyError")]
    assert len({digest(tmp_path, text) for text in [code, *other]}) == 4


@pytest.mark.parametrize(
    "call", ['column("{}").log()', 'np.log(table["{}"])', 'self.log("{}")', 'f(run, "{}")']
)
def test_texts_that_are_no_messages_are_covered(tmp_path, call):
    assert digest(tmp_path, call.format("a")) != digest(tmp_path, call.format("b"))
    assert digest(tmp_path, "self.run.log('a')") == digest(tmp_path, "self.run.log('b')")


@pytest.mark.parametrize(
    "given", ["f'after {step(1)}'", "f'{(n := 1)} steps'", "step(1)", "'{}'.format(step(1))"]
)
@pytest.mark.parametrize("message", ["run.note({})", "raise ValueError({})"])
def test_what_a_message_computes_is_covered(tmp_path, message, given):
    assert digest(tmp_path, message.format(given)) != digest(
        tmp_path, message.format(given.replace("1", "2"))
    )
    other = given.replace("after", "before").replace("steps", "of them")
    assert digest(tmp_path, message.format(given)) == digest(tmp_path, message.format(other))


SCRIPT = r"""
import json, sys
from pathlib import Path
from overnight import Artifact, DataSpec
from overnight.data.dataset import Dataset
from overnight.night.key import covered_files, key
from tasks.tabular.join import TableParams, join_tables
from tasks.vision.cnn import CnnParams, train_cnn

root = Path.cwd()
images = Artifact(kind="images", path="/made", digest="d", spec=DataSpec())
entry = Dataset(name="x", kind="table", reader="csv")
cases = {"cnn": (train_cnn, [CnnParams(), images], ()), "join": (join_tables, [TableParams(fact="x"), entry],
    ["overnight.data.readers.csv"])}
found = {}
for name, (step, arguments, more) in cases.items():
    plain = key(step, 0, arguments)
    assert "torch" not in sys.modules, "the key imported what it covers"
    covered = covered_files(step, more)
    texts = {path: path.read_text() for path in root.rglob("*.py")}

    def changes(line, paths):
        for path in paths:
            path.write_text(texts[path] + line)
        changed = key(step, 0, arguments) != plain
        for path in paths:
            path.write_text(texts[path])
        return changed

    found[name] = {
        "covered": [path.relative_to(root).as_posix() for path in covered],
        "not changed by": [path.name for path in covered if not changes("\nCHANGED = 1\n", [path])],
        "changed by comments": changes("\n# a comment\n", covered),
        "changed by others": changes("\nCHANGED = 1\n", set(texts) - set(covered)),
    }
print(json.dumps(found))
"""


def test_a_changed_line_of_each_covered_module_changes_the_key_and_no_other_does(tmp_path):
    for folder in ("overnight", "tasks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name, found in json.loads(done.stdout).items():
        assert found["not changed by"] == []
        assert not found["changed by comments"]
        assert not found["changed by others"]
        covered = set(found["covered"])
        never = ("overnight/run", "overnight/gpu/", "overnight/step", "overnight/memory/", "overnight/events")
        assert not [path for path in covered if path.startswith((*never, "overnight/orchestration/"))]
        expected = {
            "cnn": {
                "tasks/vision/cnn.py",
                "tasks/vision/nets/resnet18.py",
                "tasks/shared/figures.py",
                "overnight/training/loop.py",
            },
            "join": {"tasks/tabular/join.py", "tasks/tabular/columns.py", "overnight/data/readers/csv.py"},
        }
        assert expected[name] <= covered


def test_libraries_are_those_that_the_code_imports(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "import json\n\n\ndef f():\n    from sklearn.linear_model import Ridge\n    return Ridge\n"
    )
    assert set(library_versions([file])) == {"python", "scikit-learn"}


def test_what_a_probe_chooses_is_part_of_the_key():
    chosen = {"engine": "streaming"}

    @step(probe=lambda _card, _params: chosen)
    def probed(run: Run, params: CountParams) -> None:
        """Probed."""

    plain = key(probed, 0, [CountParams()])
    assert key(probed, 0, [CountParams()]) == plain
    chosen["engine"] = "gpu"
    assert key(probed, 0, [CountParams()]) != plain


def test_probes_of_the_tables_follow_the_card_and_the_values():
    from tasks.tabular.fit import fit_table
    from tasks.tabular.params import FitParams

    card = Card(uuid="virtual", name="virtual", total_mib=1024, budget_mib=1024)
    table = Artifact(kind="table", path="/made", digest="d", spec=DataSpec(rows=10))
    values = {"target": "a", "numeric": ["b"]}
    automatic = fit_table.choices(card, [FitParams(**values), table])
    asked = fit_table.choices(card, [FitParams(**values, backend="cuml"), table])
    assert (automatic, asked) == ({"backend": "sklearn"}, {"backend": "cuml"})


@pytest.fixture
def family(tmp_path, monkeypatch):
    """`load(file)`: the step of a file in tasks/toy of a checkout of one's own, below another folder tasks."""
    root = tmp_path / "tasks" / "mine"
    monkeypatch.setenv("OVERNIGHT_ROOT", str(root))
    for name, text in {
        "tasks/toy/params.py": "SIZE = 1\n",
        "tasks/toy/other.py": "SIZE = 2\n",
        "other.py": "x = 1\n",
        "flows/toy.py": STEP,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "tasks" / "toy" / "nets").mkdir()
    (root / "tasks" / "toy" / "nets" / "small.py").write_text(STEP)

    def load(file):
        spec = importlib.util.spec_from_file_location(Path(file).stem, root / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.train_toy

    load.root = root
    return load


STEP = """from overnight import Params, Run, step


@step
def train_toy(run: Run, params: Params) -> None:
    from tasks.toy.params import SIZE
    run.note('x')
"""
NETS = "tasks/toy/nets/small.py"


def names(step):
    return {file.name for file in covered_files(step)} - {"__init__.py"}


def test_a_step_is_covered_with_what_it_imports_of_its_family(family):
    assert names(family(NETS)) == {"small.py", "params.py"}


@pytest.mark.parametrize(
    "line",
    ["import_module(f'tasks.toy.{x}')", "from importlib import import_module as load", "__import__(x)"],
)
def test_a_file_that_imports_by_name_is_covered_with_its_whole_family(family, line):
    step = family(NETS)
    (family.root / "tasks" / "toy" / "params.py").write_text(f"SIZE = 1\ndef f(x):\n    {line}\n")
    assert names(step) == {"small.py", "other.py", "params.py"}


@pytest.mark.parametrize(
    "line", ["import mine", "from mine import x", "from tasks.toy import other", "X = 'tasks.toy.other:f'"]
)
def test_code_anywhere_in_the_checkout_is_covered_when_it_is_imported(family, line):
    (family.root / "mine.py").write_text("x = 1\n")
    step = family(NETS)
    params = family.root / "tasks" / "toy" / "params.py"
    params.write_text(f"{line}\n{params.read_text()}")
    assert ("mine.py" in names(step)) == ("mine" in line)
    assert ("other.py" in names(step)) == ("other" in line)


def test_a_step_beside_tasks_is_covered_with_what_it_imports(family):
    assert names(family("flows/toy.py")) == {"toy.py", "params.py"}


def test_what_an_editor_leaves_in_a_family_is_not_covered(family):
    toy = family.root / "tasks" / "toy"
    (toy / ".#params.py").symlink_to("me@here.1:2")
    (toy / ".ipynb_checkpoints").mkdir()
    (toy / ".ipynb_checkpoints" / "params.py").write_text("SIZE = 0\n")
    assert names(family(NETS)) == {"small.py", "params.py"}


@pytest.mark.parametrize(
    ("text", "said"), [("x = 1\ndef (:\n", "tasks/toy/params.py:2: invalid syntax"), ("\0", "null bytes")]
)
def test_a_file_of_the_family_that_is_no_python_is_named(family, text, said):
    step = family(NETS)
    (family.root / "tasks" / "toy" / "params.py").write_text(text)
    for digest_of in (covered_files, lambda step: step.memory_key([])):
        with pytest.raises(ConfigError, match=said) as caught:
            digest_of(step)
        assert str(caught.value).startswith("tasks/toy/params.py")


def test_a_file_of_the_family_that_cannot_be_read_is_named(family):
    (family.root / "tasks" / "toy" / "lost.py").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"tasks/toy/lost\.py: cannot be read: No such file"):
        family(NETS).memory_key([])


@pytest.mark.parametrize("line", ["from ...shared.figures import x", "from ...shared import figures"])
def test_relative_imports_are_followed(family, line):
    step = family(NETS)
    small = family.root / NETS
    small.write_text(f"{line}\n{STEP}")
    assert "figures.py" in names(step)
    small.write_text(f"from . import figures\n{STEP}")
    assert "figures.py" not in names(step)
