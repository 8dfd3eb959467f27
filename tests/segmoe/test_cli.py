import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from segmoe.cli import main


def run(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_verify_prints_a_verdict_and_exits_with_zero(qwen3: Path) -> None:
    result = run("verify", qwen3, "--experts", 3, "--new-tokens", 2)
    assert result.exit_code == 0, result.output
    assert "equal to stock transformers" in result.output


def test_verify_as_json_is_one_object(qwen3: Path) -> None:
    result = run("verify", qwen3, "--new-tokens", 2, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["equal"] is True


def test_verify_layer_by_layer_tells_progress_on_stderr_and_the_count_on_stdout(qwen3: Path) -> None:
    result = run("verify", qwen3, "--layers")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("24 of 24 experts in 3 layers certified")
    assert result.stderr.count("left)") == 3
    found = json.loads(run("verify", qwen3, "--layers", "--json").stdout)
    assert (found["equal"], found["experts"], found["experts_equal"]) == (True, 24, 24)


def test_layers_and_prompts_exclude_each_other(qwen3: Path) -> None:
    assert run("verify", qwen3, "--layers", "--prompts", __file__).exit_code == 2


def test_a_failure_with_json_is_one_object_too(tmp_path: Path) -> None:
    result = run("verify", tmp_path / "nothing", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"]["kind"] == "CheckpointError"


@pytest.mark.parametrize("damage", ["folder", "shard", "truncated"])
def test_a_bad_checkpoint_is_one_line_and_exit_code_one(qwen3: Path, tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    shard = folder / "model-00002-of-00005.safetensors"
    if damage == "folder":
        shutil.rmtree(folder)
    elif damage == "shard":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-10])
    result = run("verify", folder)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("segmoe: ")


def test_a_budget_below_one_is_a_usage_error(qwen3: Path) -> None:
    assert run("verify", qwen3, "--experts", 0).exit_code == 2


def test_events_cost_no_torch() -> None:
    code = "import sys, segmoe.events; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_these_and_all_of_them_exist() -> None:
    import segmoe

    names = ["CheckpointError", "ConfigError", "SegmoeError", "Unsupported", "attach", "load", "verify"]
    assert segmoe.__all__ == names
    assert all(callable(getattr(segmoe, name)) for name in segmoe.__all__)
