"""What `segmoe generate` prints is what stock transformers would say, and Ctrl-C loses no figures."""

import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from segmoe import ConfigError, generate
from segmoe.cli import main
from segmoe.embedded import MODEL

PROMPT = "It is a truth universally acknowledged"
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def run(*arguments: object):
    return CliRunner().invoke(main, ["generate", *(str(argument) for argument in arguments)])


def stock(text: str, seed: int | None = None, **options: object) -> str:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", experts_implementation="eager").eval()
    ids = tokenizer(text, return_tensors="pt")
    if seed is not None:
        torch.manual_seed(seed)
    out = model.generate(**ids, max_new_tokens=12, **options)
    return tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_it_prints_the_stock_models_text_and_the_figures_beside_it() -> None:
    result = run(MODEL, "--prompt", PROMPT, "--max-new-tokens", 12, "--experts", 25)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == stock(PROMPT, do_sample=False).strip()
    for part in ("12 new tokens", "tokens/s", "were hits", "read, 25 experts in memory"):
        assert part in result.stderr


def test_without_a_path_the_embedded_model_writes_with_a_quarter_of_its_experts() -> None:
    result = run("--prompt", PROMPT, "--max-new-tokens", 12)
    assert result.stdout.strip() == stock(PROMPT, do_sample=False).strip()
    assert "40 experts in memory" in result.stderr and "below" not in result.stderr


def test_sampling_with_a_seed_is_the_stock_models_sampling() -> None:
    options = ("--do-sample", "--temperature", 0.8, "--top-p", 0.9, "--top-k", 40, "--seed", 7)
    result = run("--prompt", PROMPT, "--max-new-tokens", 12, *options)
    wanted = stock(PROMPT, seed=7, do_sample=True, temperature=0.8, top_p=0.9, top_k=40)
    assert result.stdout.strip() == wanted.strip()


def test_sampling_options_alone_are_a_usage_error() -> None:
    result = run("--prompt", PROMPT, "--temperature", 0.8)
    assert result.exit_code == 2 and "--do-sample" in result.stderr


@pytest.mark.parametrize("budget", [("--experts", 19), ("--budget", "700KiB")])
def test_a_budget_below_one_token_cycle_is_told_in_one_sentence(budget: tuple) -> None:
    result = run("--prompt", PROMPT, "--max-new-tokens", 2, *budget)
    assert result.exit_code == 0
    assert "below the 20 experts (720.0 KiB) that one token touches" in result.stderr.splitlines()[0]


def test_chat_uses_the_tokenizers_template_or_says_that_there_is_none(tmp_path: Path) -> None:
    result = run("--prompt", PROMPT, "--chat")
    assert result.exit_code == 1 and "has no chat template" in result.stderr
    talkative = Path(shutil.copytree(MODEL, tmp_path / "talkative"))
    (talkative / "chat_template.jinja").write_text(CHAT)
    result = run(talkative, "--prompt", PROMPT, "--chat", "--max-new-tokens", 12)
    assert result.stdout.strip() == stock(f"user: {PROMPT}\nassistant:", do_sample=False).strip()


def test_a_folder_without_a_tokenizer_and_an_empty_prompt_are_refused(qwen3: Path) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        generate.generate(qwen3, PROMPT)
    with pytest.raises(ConfigError, match="no tokens"):
        generate.generate(MODEL, "")


def test_ctrl_c_ends_with_130_and_the_figures_so_far() -> None:
    command = [sys.executable, "-m", "segmoe", "generate", "--prompt", PROMPT, "--max-new-tokens", "100000"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a test run in the background may ignore it
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, **pipes, preexec_fn=heard) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        figures = process.stderr.read()
    assert process.returncode == 130
    assert figures.startswith("interrupted: ") and "tokens/s" in figures and "Traceback" not in figures
