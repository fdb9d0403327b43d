"""Steps: the body is a plain function, and steps are found by name."""

import pytest

from overnight import Artifact, Params, Run, runtime_option, step
from overnight.errors import BadInput, ConfigError
from overnight.run import RecordingRun
from overnight.step import load_pipeline, load_step


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


@pytest.mark.parametrize("line", ["from overnight.dataset import Dataset", "from tasks.cnn import CnnParams"])
def test_a_flow_with_imports_of_before_is_refused_with_the_page_that_names_the_new_ones(tmp_path, line):
    import flows

    (tmp_path / "older.py").write_text(f"{line}\n")
    flows.__path__.append(str(tmp_path))
    try:
        with pytest.raises(ConfigError, match=r"flows/older\.py: .*docs/upgrading\.md"):
            load_pipeline("older")
    finally:
        flows.__path__.remove(str(tmp_path))
