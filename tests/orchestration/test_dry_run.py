"""The dry run of a flow's code, which `overnight fit` looks at."""

import sys

import pytest

from overnight.errors import ConfigError
from overnight.orchestration.dry_run import planned_steps


def test_a_flow_whose_code_fails_is_named_with_its_line(tmp_path):
    import flows

    text = "from overnight import Experiment, pipeline\n\n\n@pipeline\ndef odd(cfg: Experiment):\n    cfg.nothing\n"
    (tmp_path / "odd.py").write_text(text)
    (tmp_path / "odd.yaml").write_text("flow: odd\n")
    flows.__path__.append(str(tmp_path))
    try:
        with pytest.raises(
            ConfigError, match=r"odd\.py:6: AttributeError: 'Experiment' object has no attribute"
        ):
            planned_steps(tmp_path / "odd.yaml")
    finally:
        flows.__path__.remove(str(tmp_path))
        sys.modules.pop("flows.odd", None)
