"""Configs: typed, closed, overridden by dotted keys, and all their mistakes reported at once."""

import pytest

from overnight.config import CardChoice, Experiment, Params, Values, runtime_option
from overnight.errors import ConfigError


class NetParams(Params):
    epochs: int = 3
    rate: float = 0.1
    micro_batch: int | None = runtime_option(None, "memory only")


class Part(Experiment):
    net: NetParams = NetParams()


class Whole(Experiment):
    net: NetParams
    parts: dict[str, Part] = {}
    many: list[NetParams] = []
    maybe: Part | None = None


def write(folder, text):
    path = folder / "whole.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        Whole.load(path, overrides)
    return caught.value.problems


def test_values_and_overrides(tmp_path):
    path = write(
        tmp_path, "net: {epochs: 5, rate: 1e-3}\nparts:\n  a: {net: {epochs: 7}}\nmany: [{epochs: 1}]\n"
    )
    whole = Whole.load(
        path, ["net.epochs=9", "parts.b.net.rate=0.5", "many.0.rate=2e-2", "maybe.net.epochs=4", "seed=3"]
    )
    assert (whole.net.epochs, whole.net.rate, whole.seed) == (9, 0.001, 3)
    assert (whole.parts["a"].net.epochs, whole.parts["b"].net.rate, whole.many[0].rate) == (7, 0.5, 0.02)
    assert whole.maybe is not None
    assert whole.maybe.net.epochs == 4


def test_every_mistake_is_reported_at_once_with_its_place_and_the_nearest_key(tmp_path):
    path = write(tmp_path, "net:\n  epochss: 5\n  rate: fast\nparts: {a: {nett: {}}}\nnmae: x\n")
    found = problems(path, "net.epoch=2", "parts.a.net.epoch=1", "what")
    text = "\n".join(found)
    assert len(found) == 7
    assert "whole.yaml:2: net.epochss: unknown key; did you mean 'epochs'?" in text
    assert "whole.yaml:3: net.rate: input should be a valid number" in text
    assert "whole.yaml:4: parts.a.nett: unknown key; did you mean 'net'?" in text
    assert "whole.yaml:5: nmae: unknown key; did you mean 'name'?" in text
    assert "override 'net.epoch=2': net.epoch: unknown key; did you mean 'epochs'?" in text
    assert "override 'parts.a.net.epoch=1': parts.a.net.epoch: unknown key" in text
    assert "override 'what': write it as key=value" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected 'key: value' lines, found nothing"),
        ("- a\n- b", "found a list"),
        ("net: {epochs: 1", "not readable as yaml"),
        ("net: {epochs: 1}\nnet: {epochs: 2}", "written twice"),
        ("seed: 1", "net: is required and missing"),
        ("net: {}\nparts: {a: {seed: 4}}", "parts.a.seed: belongs at the top"),
        ("net: {}\nmaybe: {flow: x}", "maybe.flow: belongs at the top"),
        ("net: {}\nseed: -1", "greater than or equal to 0"),
    ],
)
def test_a_file_that_is_wrong_says_so(tmp_path, text, said):
    assert said in "\n".join(problems(write(tmp_path, text)))


@pytest.mark.parametrize(
    "override", ["=3", "net..epochs=3", "net", "many.5.epochs=1", "net.epochs.deep=1", "net.epochs={"]
)
def test_an_override_that_is_wrong_says_so(tmp_path, override):
    assert override in "\n".join(problems(write(tmp_path, "net: {}\nmany: [{}]"), override))


def test_a_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "net: {}")
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean .*whole\.yaml\?"):
        Whole.load(tmp_path / "whoel.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        Whole.load(tmp_path)


def test_not_utf8_is_said(tmp_path):
    (tmp_path / "whole.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not readable as yaml"):
        Whole.load(tmp_path / "whole.yaml")


def test_runtime_options_stay_out_of_the_result_params():
    assert (
        NetParams(micro_batch=4, exclusive=True).result_params()
        == NetParams().result_params()
        == {"epochs": 3, "rate": 0.1}
    )

    class Nested(Values):
        inner: list[NetParams] = [NetParams(micro_batch=2)]

    assert Nested().result_params() == {"inner": [{"epochs": 3, "rate": 0.1}]}


def test_values_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        NetParams().epochs = 4  # type: ignore[misc]


def test_a_section_may_be_another_config_with_changes(tmp_path):
    (tmp_path / "part.yaml").write_text("flow: part\nseed: 9\nnet: {epochs: 6, rate: 0.5}\n")
    path = write(tmp_path, "net: {}\nparts:\n  a: part.yaml\n  b: {config: part.yaml, net: {rate: 0.25}}\n")
    whole = Whole.load(path, ["parts.a.net.epochs=8"])
    assert (whole.parts["a"].net, whole.seed) == (NetParams(epochs=8, rate=0.5), 0)
    assert whole.parts["b"].net == NetParams(epochs=6, rate=0.25)


def test_mistakes_in_a_named_config_are_reported_with_its_name(tmp_path):
    (tmp_path / "part.yaml").write_text("flow: part\nnet:\n  epocs: 6\n")
    (tmp_path / "loop.yaml").write_text("net: {}\nmaybe: loop.yaml\n")
    assert (
        "part.yaml:3: parts.a.net.epocs: unknown key; did you mean 'epochs'"
        in problems(write(tmp_path, "net: {}\nparts: {a: part.yaml}"))[0]
    )
    assert "did you mean" in problems(write(tmp_path, "net: {}\nparts: {a: parts.yaml}"))[0]
    assert "which is made of it" in problems(tmp_path / "loop.yaml")[0]


def test_the_card_is_an_index_a_uuid_or_a_mapping(tmp_path):
    def card(text, *overrides):
        return Experiment.load(write(tmp_path, text), overrides).card

    assert card("seed: 1") == card("card:") == CardChoice()
    assert card("card: 1") == card("seed: 1", "card=1") == CardChoice(use=1)
    assert card("card: GPU-3") == CardChoice(use="GPU-3")
    assert card("card: {policy: shrink, count: true}") == CardChoice(policy="shrink", count=True)
    assert card("seed: 1", "card.policy=shrink") == CardChoice(policy="shrink")
    assert Experiment(card=CardChoice(use=2)).result_params() == Experiment().result_params()


def test_every_mistake_of_a_card_is_reported(tmp_path):
    found = problems(write(tmp_path, "net: {}\ncard:\n  polcy: shrink\n  policy: sleep\n  count: maybe\n"))
    assert len(found) == 3
    assert (
        "whole.yaml:3: card.polcy: unknown key; did you mean 'policy'? allowed: count, policy, use"
        in "".join(found)
    )
    assert "whole.yaml:4: card.policy: input should be 'wait', 'shrink' or 'yield' (got 'sleep')" in "".join(
        found
    )
    for wrong in ("true", "[1]", "1.5", "{use: true}"):
        assert problems(write(tmp_path, f"net: {{}}\ncard: {wrong}\n")) == [
            (
                f"{tmp_path}/whole.yaml:2: card: expected an index, a UUID, "
                "or {use: ..., policy: ..., count: ...}"
            )
        ]
    assert "belongs at the top" in "".join(
        problems(write(tmp_path, "net: {}\nparts: {a: {card: {policy: shrink}}}\n"))
    )
