"""Is every MoE family of transformers exact when segmented? Run it and read the table; the tiny configs are configs.py.

`python -m tests.families.sweep [--only NAME] [--markdown]`. Each class is built with random weights, saved, loaded by
transformers with eager experts and by segmoe with two slots, and compared bit for bit: the logits of a left-padded
batch, then tokens and logits of greedy decoding with a cache, both without a sink and with one that is told all; and
every expert's bytes and their address modulo 64. A row says what happened and nothing better.
"""

from __future__ import annotations

import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import logging as transformers_logging

import segmoe
from segmoe.building import quiet_transformers
from segmoe.errors import SegmoeError
from segmoe.events import ExpertKey, Routed
from segmoe.manifest import ALIGNMENT
from tests import omni
from tests.families.configs import VOCABULARY, Family, families, tiny_config
from tests.tiny import RecordingSink

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"hub": True, "stacked": False}
"""Whether save_pretrained turns the weights back into the layout that the family has on the hub."""

SLOTS, NEW_TOKENS, SEED = 2, 4, 20
EXACT, DIFFERS, REFUSED, FAILS, NOT_BUILT = "exact", "DIFFERS", "refused", "FAILS", "cannot be built here"


class Outcome(NamedTuple):
    """What happened to one class, dtype and layout."""

    status: str
    detail: str


def build(family: Family, seed: int = 1) -> Any:
    """The class with random weights, large enough that routing and logits differ from token to token."""
    if family.cls.__name__ == "Qwen3OmniMoeForConditionalGeneration":
        return omni.build(seed=seed)
    torch.manual_seed(seed)
    model = family.cls._from_config(tiny_config(family.cls), experts_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.normal_(mean=1.0, std=0.1)
    model.tie_weights()
    return model.eval()


def compare(model: Any, folder: Path, *, num_beams: int = 1) -> Outcome:
    """Compare the checkpoint in `folder`, saved from `model`, stock and segmented."""
    cls = type(model)

    def stock() -> Any:
        with quiet_transformers():
            return cls.from_pretrained(folder, dtype="auto", experts_implementation="eager", local_files_only=True)

    try:
        reference = stock().eval()
        wanted = run(reference, num_beams)
    except Exception as error:
        return Outcome(NOT_BUILT, f"stock: {_words(error)}")
    if not all(bool(tensor.isfinite().all()) for tensor in wanted.values()):
        return Outcome(NOT_BUILT, "stock: logits are not finite")
    try:
        segmented = segmoe.load(folder, experts=SLOTS)
    except SegmoeError as error:
        return Outcome(REFUSED, _words(error, name=False))
    except Exception as error:
        return Outcome(FAILS, f"load: {_words(error)}")
    if type(segmented) is not cls:
        return Outcome(FAILS, f"loaded as {type(segmented).__name__}")
    try:
        found = run(segmented, num_beams)
    except SegmoeError as error:
        return Outcome(REFUSED, _words(error, name=False))
    except Exception as error:
        return Outcome(FAILS, _words(error))
    loads = segmented.segmoe.cache.counters.loads
    if not loads:
        return Outcome(FAILS, "no expert was ever loaded")
    differing = [name for name in wanted if not torch.equal(wanted[name], found[name])]
    differing += [f"bytes or address of {key}" for key in strangers(reference, segmented.segmoe)]
    segmented.segmoe.close()
    try:
        differing += [f"{name}, observed" for name in observed_differences(folder, wanted, num_beams)]
    except Exception as error:
        return Outcome(FAILS, f"observed: {_words(error)}")
    if differing:
        again = run(stock().eval(), num_beams)
        if any(not torch.equal(wanted[name], again[name]) for name in wanted):
            return Outcome(NOT_BUILT, "stock differs from stock when loaded twice")
        return Outcome(DIFFERS, ", ".join(differing))
    return Outcome(EXACT, f"{loads} loads, {', '.join(wanted)}")


def observed_differences(folder: Path, wanted: dict[str, torch.Tensor], num_beams: int) -> list[str]:
    """What differs from stock while a sink is told all there is."""
    sink = RecordingSink()
    model = segmoe.load(folder, experts=SLOTS, sink=sink, capture="contribution")
    found = run(model, num_beams)
    failures = model.segmoe.sink_failures_total
    model.segmoe.close()
    silent = [] if sink.of(Routed) and not failures else ["events"]
    return silent + [name for name in wanted if not torch.equal(wanted[name], found[name])]


def strangers(stock: Any, runtime: Any) -> Iterator[ExpertKey]:
    """The experts, picked or not, that are not bit for bit where and what they are in the stock model."""
    for place in runtime.manifest.modules:
        for expert in range(place.num_experts):
            key = ExpertKey(place.component, place.layer, expert)
            for name, tensor in runtime.cache.get(key).items():
                wanted = getattr(stock.get_submodule(place.path), name)[expert]
                is_there = (tensor.data_ptr() - wanted.data_ptr()) % ALIGNMENT == 0
                if not (is_there and tensor.stride() == wanted.stride() and torch.equal(tensor, wanted)):
                    yield key


def run(model: Any, num_beams: int = 1) -> dict[str, torch.Tensor]:
    """Logits of a left-padded batch; tokens and logits of each step of generation, if the class generates."""
    if type(model).__name__ in NATURAL:
        return NATURAL[type(model).__name__](model)
    inputs = left_padded()
    with torch.no_grad():
        torch.manual_seed(SEED)
        trace = {"logits": model(**inputs).logits.clone()}
        if model.can_generate():
            torch.manual_seed(SEED)
            answer = model.generate(
                **inputs,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                num_beams=num_beams,
                output_logits=True,
                return_dict_in_generate=True,
            )
            trace["tokens"], trace["decode logits"] = answer.sequences, torch.stack(answer.logits)
    return trace


def left_padded() -> dict[str, torch.Tensor]:
    """Three sequences of ids that mean text in every family."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(3, VOCABULARY - 60, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 7)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def _block_diffusion(model: Any) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        torch.manual_seed(SEED)
        trace = {"logits": model(**left_padded()).logits.clone()}
        torch.manual_seed(SEED)
        trace["tokens"] = model.generate(**left_padded(), max_new_tokens=16, max_denoising_steps=4).sequences
    return trace


def _text_and_image_tokens(model: Any) -> dict[str, torch.Tensor]:
    """Ernie has experts for image tokens beside those for text; every other token is called one."""
    inputs = left_padded()
    with torch.no_grad():
        kinds = inputs["input_ids"] % 2
        trace = {"logits with image tokens": model(**inputs, moe_mm_token_type_ids=kinds).logits.clone()}
        answer = model.generate(
            **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return trace | {"tokens": answer.sequences, "decode logits": torch.stack(answer.logits)}


def _speech(model: Any) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[150, 156, 10, 20, 30, 40, omni.THINKER_END, 150, 157]])
    torch.manual_seed(SEED)
    with torch.no_grad():
        text, audio = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            thinker_max_new_tokens=8,
            thinker_eos_token_id=omni.THINKER_END,
            talker_max_new_tokens=8,
        )
    return {"text": text if isinstance(text, torch.Tensor) else text.sequences, "audio": audio}


NATURAL: dict[str, Callable[[Any], dict[str, torch.Tensor]]] = {
    "DiffusionGemmaForBlockDiffusion": _block_diffusion,
    "Ernie4_5_VLMoeForConditionalGeneration": _text_and_image_tokens,
    "Ernie4_5_VL_MoeForConditionalGeneration": _text_and_image_tokens,
    "Qwen3OmniMoeForConditionalGeneration": _speech,
}
"""Classes that are run in another way than as a language model with text."""

INSIDE = {"Qwen3OmniMoeTalkerForConditionalGeneration": "Qwen3OmniMoeForConditionalGeneration"}
"""Classes that take another model's states and have no config of their own in a file."""


def names_of(folder: Path) -> set[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a saved checkpoint's tensors."""
    found = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {(name, tuple(tensors.get_slice(name).get_shape())) for name in tensors.keys()}  # noqa: SIM118
    return found


def outcomes(family: Family) -> Iterator[tuple[str, Outcome]]:
    """Each dtype and layout of a class, as `fp32 hub`, and what happened; a layout that equals another is left out."""
    if family.cls.__name__ in INSIDE:
        yield "all", Outcome(NOT_BUILT, f"runs only inside {INSIDE[family.cls.__name__]}")
        return
    try:
        model = build(family)
    except Exception as error:
        yield "all", Outcome(NOT_BUILT, _words(error))
        return
    if not any(isinstance(module, nn.Module) and hasattr(module, "_is_expert_parallel") for module in model.modules()):
        return  # such as the code predictor of a model that speaks: it lies in the file, but is no MoE
    for dtype_name, dtype in DTYPES.items():
        model = model.to(dtype)
        seen: list[set[tuple[str, tuple[int, ...]]]] = []
        for layout, original in LAYOUTS.items():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    model.save_pretrained(folder, save_original_format=original)
                except Exception as error:
                    yield f"{dtype_name} {layout}", Outcome(NOT_BUILT, f"save: {_words(error)}")
                    continue
                names = names_of(Path(folder))
                if names not in seen:
                    seen.append(names)
                    yield f"{dtype_name} {layout}", compare(model, Path(folder))


def _words(error: Exception, name: bool = True) -> str:
    words = " ".join(str(error).split())
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f" ({Path(where.filename).name}:{where.lineno})" if name else ""
    return f"{type(error).__name__ + ': ' if name else ''}{words[:300]}{place}"


@click.command()
@click.option("--only", multiple=True, help="Only families whose name contains this.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
def main(only: tuple[str, ...], markdown: bool) -> None:
    """Compare every MoE class of transformers, segmented and stock."""
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if markdown:
        click.echo("| family | class | exact | otherwise |\n|---|---|---|---|")
    for family in families():
        if only and not any(part == family.name or part in family.cls.__name__ for part in only):
            continue
        rows = list(outcomes(family))
        if not rows:
            continue
        exact = ", ".join(what for what, outcome in rows if outcome.status == EXACT)
        others = [f"{what}: {outcome.status}, {outcome.detail}" for what, outcome in rows if outcome.status != EXACT]
        if markdown:
            click.echo(f"| {family.name} | {family.cls.__name__} | {exact} | {'; '.join(others)} |")
        else:
            click.echo(f"{family.name:28} {family.cls.__name__:46} {exact}")
            for line in others:
                click.echo(f"    {line}")


if __name__ == "__main__":
    main()
