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

    assert segmoe.__all__ == ["CheckpointError", "ConfigError", "SegmoeError", "Unsupported", "load", "verify"]
    assert all(callable(getattr(segmoe, name)) for name in segmoe.__all__)
