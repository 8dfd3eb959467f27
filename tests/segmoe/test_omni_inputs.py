"""Image and sound into the full Qwen3-Omni by way of its stock processor; text and speech out.

The library's image processor (its PIL one), feature extractor and chat format are stock, the tokenizer is one of words.
Video is left out: the library's video processors need torchvision, which has no part in what is tested here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import segmoe
from segmoe.building import quiet_transformers
from segmoe.events import Routed
from tests import omni
from tests.tiny import RecordingSink

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`:UserWarning")

SPECIAL = {
    "<|im_start|>": 150,
    "<|im_end|>": 151,
    "<|audio_pad|>": 158,
    "<|image_pad|>": 159,
    "<|video_pad|>": 147,
    "<|vision_start|>": 149,
    "<|vision_end|>": 146,
    "<|audio_start|>": 148,
    "<|audio_end|>": 145,
    "user": 156,
    "assistant": 157,
}
"""The ids that omni.config gives them."""

IMAGE, AUDIO = "<|vision_start|><|image_pad|><|vision_end|>", "<|audio_start|><|audio_pad|><|audio_end|>"
TURNS = {
    "image": f"<|im_start|> user {IMAGE} w10 w20 <|im_end|> <|im_start|> assistant",
    "audio": f"<|im_start|> user {AUDIO} w10 w20 <|im_end|> <|im_start|> assistant",
    "both": f"<|im_start|> user {IMAGE} {AUDIO} w7 <|im_end|> <|im_start|> assistant",
}


class WithoutVideo(transformers.Qwen3OmniMoeProcessor):
    """The stock processor, which otherwise demands a video processor."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


@pytest.fixture(scope="module")
def processor() -> WithoutVideo:
    names = {number: name for name, number in SPECIAL.items()}
    words = Tokenizer(models.WordLevel({names.get(number, f"w{number}"): number for number in range(160)}, "w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="w0",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "audio_token": "<|audio_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
            "audio_bos_token": "<|audio_start|>",
            "audio_eos_token": "<|audio_end|>",
        },
    )
    return WithoutVideo(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=4, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
        ),
        video_processor=None,
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer,
    )


def media(kind: str, seed: int = 4) -> dict[str, Any]:
    """A picture of 24 x 16 pixels, 1.2 seconds of sound, which is more than one window."""
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    if kind != "audio":
        found["images"] = [random.integers(0, 256, (24, 16, 3), dtype=np.uint8)]
    if kind != "image":
        found["audio"] = [random.standard_normal(19_200).astype(np.float32)]
    return found


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("omni")
    omni.build(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def stock(folder: Path) -> Any:
    with quiet_transformers():
        return transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            folder, dtype="auto", experts_implementation="eager"
        ).eval()


def answer(model: Any, inputs: Any) -> list[torch.Tensor]:
    """The thinker's logits of the turn, the text and the speech that follow it.

    Of a picture and sound in one turn the library itself (5.23) cannot speak: its talker asks its config for a part
    that only the thinker's has. It writes.
    """
    speaks = not {"pixel_values", "input_features"} <= set(inputs)
    torch.manual_seed(5)
    with torch.no_grad():
        logits = model.thinker(**inputs).logits
        said = model.generate(
            **inputs,
            return_audio=speaks,
            thinker_max_new_tokens=5,
            thinker_eos_token_id=omni.THINKER_END,
            talker_max_new_tokens=6,
        )
    return [logits, *said] if speaks else [logits, said]


@pytest.mark.parametrize("kind", TURNS)
def test_what_is_seen_and_heard_is_answered_as_the_stock_model_does(
    kind: str, folder: Path, stock: Any, processor: WithoutVideo
) -> None:
    inputs = processor(text=[TURNS[kind]], return_tensors="pt", **media(kind)).to(stock.dtype)
    assert ("pixel_values" in inputs) == (kind != "audio")
    assert ("input_features" in inputs) == (kind != "image")
    wanted = answer(stock, inputs)
    other = processor(text=[TURNS[kind]], return_tensors="pt", **media(kind, seed=9)).to(stock.dtype)
    assert not torch.equal(answer(stock, other)[0], wanted[0]), "the media do not matter, so this test proves nothing"
    for experts, threads in ((2, 2), (16, 0), (48, 2)):
        model = segmoe.load(folder, experts=experts, threads=threads)
        for one, other_one in zip(answer(model, inputs), wanted, strict=True):
            assert torch.equal(one, other_one)
        model.segmoe.close()


def test_tokens_of_pictures_and_sound_are_routed_and_told_like_any_other(folder: Path, processor: WithoutVideo) -> None:
    sink = RecordingSink()
    model = segmoe.load(folder, experts=16, sink=sink)
    inputs = processor(text=[TURNS["both"]], return_tensors="pt", **media("both")).to(model.dtype)
    answer(model, inputs)
    first = next(event for event in sink.of(Routed) if event.component == "thinker")
    assert len(first.topk_ids) == inputs["input_ids"].shape[1] > 20
    assert first.position.tolist() == list(range(len(first.position)))
