"""Steps: the body is a plain function, and steps are found by name."""

import sys

import pytest

from overnight import Artifact, Params, Run, runtime_option, step
from overnight.errors import BadInput, ConfigError
from overnight.run import RecordingRun
from overnight.step import default_config, load_pipeline, load_step


class CountParams(Params):
    upto: int = 3
    micro_batch: int | None = runtime_option(None, "memory only")


@step(gpu=True, vram_mib=100)
def count(run: Run, params: CountParams, source: Artifact | None = None) -> Artifact:
    """Count."""
    for i in range(params.upto):
        run.metric("i", i, i)
    return run.save("count", meta={"upto": params.upto})


def test_the_body_is_a_plain_function(tmp_path):
    run = RecordingRun(tmp_path)
    saved = count.body(run, CountParams(upto=4))
    assert saved.meta() == {"upto": 4}
    assert run.curve("i") == [0, 1, 2, 3]
    assert (count.gpu, count.vram_mib, count.name, count.__doc__) == (True, 100, "count", "Count.")
    assert list(count.hints) == ["params", "source"]


def test_a_step_outside_a_pipeline_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"step\.body"):
        count(CountParams())


def test_what_is_no_step_is_refused():
    with pytest.raises(BadInput, match="is no step"):
        load_step("overnight.orchestration.child:main")


@pytest.fixture
def refused(tmp_path):
    """The message that refuses a flow of this text."""
    import flows

    def load(text):
        (tmp_path / "odd.py").write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_pipeline("odd")
        return str(caught.value)

    flows.__path__.append(str(tmp_path))
    yield load
    flows.__path__.remove(str(tmp_path))
    sys.modules.pop("flows.odd", None)


@pytest.mark.parametrize(
    "line",
    [
        "from overnight.dataset import Dataset",
        "from overnight.loop.batches import Batches",
        "from overnight import knob",
        "from tasks.cnn import CnnParams",
    ],
)
def test_a_flow_with_imports_of_before_is_refused_with_the_page_that_names_the_new_ones(refused, line):
    message = refused(f"\n{line}\n")
    assert "odd.py:2: " in message
    assert "docs/upgrading.md lists" in message


HEAD = "from overnight import Experiment, pipeline\n\n\n@pipeline\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef (:\n", "odd.py:2: SyntaxError: invalid syntax"),
        ("\nx = undefined\n", "odd.py:2: NameError: name 'undefined' is not defined"),
        ("x = int('a')\n", "odd.py:1: ValueError: invalid literal"),
        ("import nowhere_at_all\n", "odd.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (
            "from tasks.vision.cmn import x\n",
            "odd.py:1: ModuleNotFoundError: No module named 'tasks.vision.cmn'",
        ),
        ("from overnight import Rum\n", "odd.py:1: ImportError: cannot import name 'Rum'"),
        ("x = 1\n", "expected a @pipeline called 'odd'"),
        (f"{HEAD}def odd(cfg): ...\n", "odd.py:4: odd: write it as `def odd(cfg: C)`"),
        (f"{HEAD}def odd(): ...\n", "odd.py:4: odd: write it as"),
        (f"{HEAD}def odd(cfg: int): ...\n", "odd.py:4: odd: write it as"),
        (f"{HEAD}def odd(cfg: 'Missing'): ...\n", "odd.py:4: odd: write it as"),
    ],
)
def test_a_broken_flow_is_refused_with_its_file_and_line(refused, text, said):
    message = refused(text)
    assert said in message
    assert "upgrading" not in message


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"paint.yaml": "flow: other\n", "a.yaml": "flow: paint\n"}, "paint.yaml"),
        ({"b.yaml": "# About\nflow: paint  # of oil\n", "a.yaml": "flow: painter\n"}, "b.yaml"),
        ({"b.yaml": "flow: paint", "a.yaml": "flow: paint"}, "a.yaml"),
        ({"a.yaml": "x:\n  flow: paint\n"}, "paint.yaml"),
    ],
)
def test_the_config_of_a_flow_that_is_given_none(tmp_path, monkeypatch, files, found):
    monkeypatch.setenv("OVERNIGHT_ROOT", str(tmp_path))
    (tmp_path / "configs").mkdir()
    for name, text in files.items():
        (tmp_path / "configs" / name).write_text(text)
    assert default_config("paint") == f"configs/{found}"
