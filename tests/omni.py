"""The full Qwen3-Omni, tiny and seeded: thinker, talker, code predictor and vocoder. Text families are in tiny.py."""

from __future__ import annotations

from typing import Any

import torch
import transformers

THINKER_END = 151
TURN = [150, 156, 10, 20, 30, 40, 151, 150, 157]


def build(dtype: torch.dtype = torch.float32, seed: int = 1) -> Any:
    """Thinker of 3 layers x 8 experts (top-3), talker of 3 x 8 (top-2) with a shared expert."""
    torch.manual_seed(seed)
    model = transformers.Qwen3OmniMoeForConditionalGeneration._from_config(config(), experts_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 or ".experts." in name:
                parameter.normal_(std=0.3)
    return model.to(dtype).eval()


def config() -> Any:
    """All parts at a size that decodes in milliseconds."""
    text = {
        "vocab_size": 160,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "moe_intermediate_size": 20,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    }
    tokens = {"audio_token_id": 158, "image_token_id": 159, "video_token_id": 147, "audio_start_token_id": 148}
    audio = {
        "num_mel_bins": 16,
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "output_dim": 32,
        "downsample_hidden_size": 8,
        "n_window": 50,  # the library counts on 13 tokens of 100 frames
        "n_window_infer": 100,
        "max_source_positions": 64,
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    predictor = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_code_groups": 4,
    }
    return transformers.Qwen3OmniMoeConfig(
        thinker_config={"text_config": text, "audio_config": audio, "vision_config": vision, "user_token_id": 156}
        | {"vision_start_token_id": 149, "vision_end_token_id": 146, "audio_end_token_id": 145}
        | tokens,
        talker_config={
            "text_config": text | {"vocab_size": 1100, "shared_expert_intermediate_size": 24, "num_experts_per_tok": 2},
            "code_predictor_config": predictor,
            "num_code_groups": 4,
            "spatial_merge_size": 2,
            "thinker_hidden_size": 32,
            "accept_hidden_layer": 1,
            "codec_eos_token_id": 1090,
            "codec_nothink_id": 1091,
            "codec_think_bos_id": 1092,
            "codec_think_eos_id": 1093,
            "codec_pad_id": 1094,
            "codec_bos_id": 1095,
            "vision_start_token_id": 149,
            "speaker_id": {"ethan": 7},
        }
        | tokens,
        code2wav_config={
            "codebook_size": 64,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_quantizers": 4,
            "decoder_dim": 32,
            "upsample_rates": [4, 2],
            "upsampling_ratios": [2],
            "sliding_window": 8,
        },
        im_start_token_id=150,
        im_end_token_id=THINKER_END,
        tts_pad_token_id=152,
        tts_bos_token_id=153,
        tts_eos_token_id=154,
        system_token_id=155,
        user_token_id=156,
        assistant_token_id=157,
        architectures=["Qwen3OmniMoeForConditionalGeneration"],
    )


def tokens_of(answer: Any) -> torch.Tensor:
    """The text tokens of an answer, whichever form the library gave it."""
    first = answer[0] if isinstance(answer, tuple) else answer
    tokens: torch.Tensor = getattr(first, "sequences", first)
    return tokens


def speak(model: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Text tokens [1, n] and waveform [1, 1, samples] that the model answers to a short turn, sampled by default."""
    ids = torch.tensor([TURN])
    torch.manual_seed(5)
    with torch.no_grad():
        tokens, wave = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            thinker_max_new_tokens=8,
            thinker_eos_token_id=THINKER_END,
            talker_max_new_tokens=12,
            **options,
        )
    return tokens, wave
