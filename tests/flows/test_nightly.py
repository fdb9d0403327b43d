"""A night is a list of experiments: what an item may be, which mistakes are found, and what runs once."""

import pytest

from overnight.config import read
from overnight.errors import ConfigError
from overnight.orchestration.checks import load
from overnight.orchestration.dry_run import planned_steps
from overnight.paths import configs

VISION = "flow: vision\nseed: 4\ndata: digits\ncnn: {epochs: 2}\n"


@pytest.fixture
def night(tmp_path):
    (tmp_path / "small.yaml").write_text(VISION)

    def write(text):
        path = tmp_path / "night.yaml"
        path.write_text("flow: nightly\n" + text)
        return path

    return write


def problems(path, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return caught.value.problems


def test_an_item_is_a_file_or_a_mapping_with_changes(night):
    path = night(
        "experiments:\n  - small.yaml\n  - {config: small.yaml, name: longer, cnn: {epochs: 5}}\n"
        "  - {flow: agent, agent: {env: CartPole-v1}}\n"
    )
    _, experiment = load(path, ["experiments.0.cnn.epochs=3", "experiments.longer.cnn.batch=8"])
    first, second, third = experiment.experiments
    assert [(part.name, part.flow) for part in experiment.experiments] == [
        ("small", "vision"),
        ("longer", "vision"),
        ("agent", "agent"),
    ]
    assert (first.cnn.epochs, second.cnn.epochs, second.cnn.batch) == (3, 5, 8)
    assert third.agent.env == "CartPole-v1"
    assert '"epochs": 5' in experiment.model_dump_json(indent=1)


def test_every_mistake_of_every_experiment_is_reported_with_its_place(night):
    path = night(
        "experiments:\n  - {config: small.yaml, cnn: {epoch: 3}}\n  - {flow: visin}\n  - hello\n"
        "  - {flow: vision, data: digitss}\n"
    )
    found = problems(path, "experiments.3.cnn.lrr=1", "experiments.7.cnn.lr=1")
    expected = [
        "experiments.7.cnn.lr=1': the list has the entries 0 to 3: small",
        "night.yaml:3: experiments.0.cnn.epoch: unknown key; did you mean 'epochs'?",
        "night.yaml:4: experiments.1: unknown flow 'visin'; there are agent, ",
        "night.yaml:5: experiments.2: expected a config, e.g. cifar10.yaml",
        "night.yaml:6: experiments.3.data: unknown data set 'digitss'; did you mean 'digits'?",
        "override 'experiments.3.cnn.lrr=1': experiments.3.cnn.lrr: unknown key; did you mean 'lr'?",
    ]
    assert len(found) == len(expected)
    assert all(text in problem for text, problem in zip(expected, found, strict=True)), found


def test_a_mistake_in_a_named_file_is_reported_at_that_file(night, tmp_path):
    (tmp_path / "small.yaml").write_text("flow: vision\ndata: digits\ncnn: {lrr: 3}\n")
    assert (
        "small.yaml:3: experiments.0.cnn.lrr: unknown key" in problems(night("experiments: [small.yaml]"))[0]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is nothing to run"),
        ("vision: {digits: small.yaml}", "night.yaml:2: vision: a night is a list of experiments now: exp"),
        ("experiments: [small.yaml, small.yaml]", "night.yaml:2: experiments: several are called small"),
        ("experiments: [{config: small.yaml, seed: 3}]", "experiments.0.seed: belongs at the top"),
        ("experiments: [{flow: nightly}]", "unknown flow 'nightly'"),
        ("experiments: [{name: x}]", "a flow or a config is required and missing"),
    ],
)
def test_a_night_that_is_wrong_says_what_to_write(night, text, message):
    assert message in "\n".join(problems(night(text)))


def test_every_file_that_cannot_be_read_is_reported_with_the_line_that_names_it(night, tmp_path):
    path = night(
        "experiments:\n  - no1.yaml\n  - no2.yaml\n  - {config: small.yaml, cnn: {width: 3}}\n  - ./night.yaml\n"
    )
    expected = [
        f"{tmp_path}/night.yaml:3: experiments.0: {tmp_path}/no1.yaml: there is no such file",
        f"{tmp_path}/night.yaml:4: experiments.1: {tmp_path}/no2.yaml: there is no such file",
        f"{tmp_path}/night.yaml:6: experiments.3: {tmp_path}/night.yaml: names {tmp_path}/night.yaml, which is",
        f"{tmp_path}/night.yaml:5: experiments.2.cnn.width: is now called channels",
    ]
    found = problems(path, "experiments.0.cnn.lr=1")
    assert len(found) == len(expected)
    assert all(problem.startswith(text) for text, problem in zip(expected, found, strict=True)), found


def test_a_config_of_a_broken_flow_is_reported_among_the_others(night, tmp_path):
    import flows

    (tmp_path / "toy.py").write_text("def (:\n")
    flows.__path__.append(str(tmp_path))
    try:
        found = problems(night("experiments:\n  - {flow: toy}\n  - {config: small.yaml, cnn: {width: 3}}\n"))
    finally:
        flows.__path__.remove(str(tmp_path))
    assert len(found) == 2
    assert f"night.yaml:3: experiments.0: {tmp_path}/toy.py:1: SyntaxError: invalid syntax" in found[0]


def test_what_a_named_config_says_about_the_whole_run_has_no_effect_and_is_said(night, tmp_path):
    (tmp_path / "small.yaml").write_text("name: mine\n" + VISION + "card: 1\n")
    path = night("experiments: [small.yaml]\nseed: 7")
    _, experiment = load(path)
    assert (experiment.seed, experiment.experiments[0].name) == (7, "small")
    assert read(path)[1].left_out == [
        f"{tmp_path}/small.yaml:{line}: {key} has no effect here: {tmp_path}/night.yaml has its own"
        for key, line in (("name", 1), ("seed", 3), ("card", 6))
    ]


def test_an_override_may_name_a_config(night, tmp_path):
    (tmp_path / "other.yaml").write_text("flow: vision\ndata: digits\ncnn: {epochs: 9}\n")
    path = night("experiments: [small.yaml]")
    _, experiment = load(path, ["experiments.small=other.yaml"])
    assert [(part.name, part.cnn.epochs) for part in experiment.experiments] == [("other", 9)]
    (problem,) = problems(path, "experiments.small=no.yaml")
    assert problem.startswith("override 'experiments.small=no.yaml': experiments.0: ")


def test_an_item_may_be_a_command_of_any_program(night):
    path = night(
        "experiments:\n  - small.yaml\n"
        "  - {command: python my.py settings.yaml, vram: 2000, name: mine}\n"
        "  - {command: [nvidia-smi, -q], vram: 0, cwd: /tmp}\n"
    )
    _, experiment = load(path)
    _, mine, other = experiment.experiments
    assert (mine.name, mine.flow, mine.command) == ("mine", "command", "python my.py settings.yaml")
    assert (other.name, other.command, other.vram) == ("command", ("nvidia-smi", "-q"), 0)
    assert [planned.label for planned in planned_steps(path)][-2:] == [
        "mine/run_program",
        "command/run_program",
    ]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("{command: ' '}", "experiments.0.command: expected a line for the shell"),
        ("{command: []}", "experiments.0.command: expected a line for the shell"),
        ("{command: x, vram: -1}", "experiments.0.vram: input should be greater than or equal to 0"),
        ("{command: x, vrm: 1}", "experiments.0.vrm: unknown key; did you mean 'vram'?"),
        ("{config: small.yaml, command: x}", "experiments.0.command: unknown key"),
    ],
)
def test_a_command_that_is_wrong_says_what_to_write(night, item, message):
    assert message in "\n".join(problems(night(f"experiments: [{item}]")))


@pytest.mark.parametrize("name", ["demo", "nightly"])
def test_the_table_that_two_experiments_need_is_joined_once(name):
    labels = [planned.label for planned in planned_steps(configs() / f"{name}.yaml")]
    assert [label for label in labels if "join_tables" in label] == ["etl/join_tables"]
    assert {"etl/fit_table", "planes/link_rows", "planes/train_gnn", "cartpole/train_agent"} <= set(labels)
