"""Steps: the body is a plain function, and the key changes with what decides the result and with nothing else."""

import pytest

from overnight import Artifact, DataSpec, Params, Run, runtime_option, step
from overnight.data.dataset import DataFile, Entry
from overnight.errors import BadInput
from overnight.orchestration.child import find
from overnight.run import RecordingRun


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


def test_the_key_follows_values_data_seed_and_nothing_else(tmp_path):
    one = Artifact(kind="images", path=tmp_path, digest="d1", spec=DataSpec(nodes=3))
    moved = Artifact(kind="images", path=tmp_path / "elsewhere", digest="d1")
    other = Artifact(kind="images", path=tmp_path, digest="d2")
    key = count.key(0, [CountParams(), one])
    assert key == count.key(0, [CountParams(micro_batch=8, exclusive=True), moved])
    different = {
        count.key(0, [CountParams(upto=4), one]),
        count.key(1, [CountParams(), one]),
        count.key(0, [CountParams(), other]),
    }
    assert len(different | {key}) == 4


def test_a_data_set_enters_the_key_by_its_digests():
    def entry(sha, about=""):
        return Entry(
            name="x", kind="table", reader="csv", files=[DataFile(path="a.csv", sha256=sha * 64)], about=about
        )

    assert count.key(0, [entry("a")]) == count.key(0, [entry("a", "other words")])
    assert count.key(0, [entry("a")]) != count.key(0, [entry("b")])


def test_what_is_no_step_is_refused():
    with pytest.raises(BadInput, match="is no step"):
        find("overnight.orchestration.child:main")
