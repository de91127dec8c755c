"""Which LLM families run packed, exactly: a table held by the contract tests, and a probe for families not in it."""

import json
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from medmvl.core.layout import Layout, Segment
from medmvl.model import attention
from medmvl.model.kept import Kept, Reading, Writing


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


VERIFIED = frozenset(
    _names(
        "apertus arcee cohere cohere2 deepseek_v2 deepseek_v3 ernie4_5 ernie4_5_moe exaone4 gemma gemma2 gemma3_text "
        "glm glm4 glm4_moe gpt2 gpt_neox gpt_oss granite granite_swa granitemoe helium hunyuan_v1_dense internlm3 "
        "llama minicpm3 ministral ministral3 mistral mixtral nanochat olmo olmo2 olmo3 olmoe opt persimmon phi phi3 "
        "phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2 vaultgemma"
    )
)
"""Model types whose packed loss and gradients equal the unpacked ones; held by tests/contracts/test_llm_families.py."""

_STATE = "its layers carry a state from token to token (recurrence, convolution or linear attention)"
_ALIBI = "it adds a bias by key index (ALiBi) to its scores"
_OWN = "its attention does not go through transformers' AttentionInterface"
_DROPS = "its layers drop the forward keyword that carries the layout"
_CHUNKS = "its attention works in chunks of the row"
_PER_LAYER = "every layer looks up token ids, which image tokens do not have"

_RECURRENT = _names(
    "bamba falcon_h1 falcon_mamba granitemoehybrid jamba kimi_linear lfm2 lfm2_moe lfm3 mamba mamba2 minimax "
    "nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma rwkv xlstm zamba zamba2"
)
REFUSED: dict[str, str] = {
    **dict.fromkeys(_RECURRENT, _STATE),
    **dict.fromkeys(("bloom", "falcon", "mpt"), _ALIBI),
    **dict.fromkeys(_names("codegen fuyu gpt_neo gpt_neox_japanese gptj openai-gpt xglm"), _OWN),
    **dict.fromkeys(("nemotron", "stablelm"), _DROPS),
    **dict.fromkeys(("llama4_text",), _CHUNKS),
    **dict.fromkeys(("gemma3n_text", "gemma4_text"), _PER_LAYER),
}
"""Model types that run one sample at a time, and why."""

_ATTENDING = {"full_attention", "sliding_attention"}
_MASKED_WINDOWS = {"phimoe", "qwen2_moe"}  # they put their window into a mask, and do not tell the attention


def packable(config: PreTrainedConfig) -> tuple[bool, str]:
    """Return whether this LLM gives the same answer packed as one sample at a time, and why.

    A family of neither table is put to the probe: a two-layer copy with random weights must agree with itself.
    """
    family = config.model_type
    if family in REFUSED:
        return False, f"{family}: {REFUSED[family]}"
    foreign = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENDING)
    if foreign:
        return False, f"{family}: it has layers of kind {', '.join(foreign)}"
    if getattr(config, "use_bidirectional_attention", None) or not getattr(config, "is_causal", True):
        return False, f"{family}: its attention is not causal"
    if family in _MASKED_WINDOWS and _windowed(config):
        return False, f"{family}: it applies its sliding window through a mask only"
    if family in VERIFIED:
        return True, f"{family}: verified family"
    reason = _probe(json.dumps(config.to_diff_dict(), sort_keys=True, default=str))
    return (True, f"{family}: passed the probe") if reason is None else (False, f"{family}: {reason}")


def _windowed(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None) or ("sliding_attention",)
    return bool(config.sliding_window) and "sliding_attention" in kinds


def position_limit(config: PreTrainedConfig) -> int | None:
    """Return the sample length from which rotary frequencies depend on the longest sample of a row; None for never.

    Dynamic NTK and LongRoPE (Phi-3, Phi-4 with 128k context) choose frequencies by the longest position they see, so a
    row must not mix samples below and above.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    limits = []
    for table in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        kind = table.get("rope_type", "default")
        if kind == "longrope":
            limits.append(table.get("original_max_position_embeddings") or config.max_position_embeddings)
        elif "dynamic" in kind:
            limits.append(config.max_position_embeddings)
    return min(limits, default=None)


_TABLED = frozenset(_names("biogpt codegen gpt2 gpt_bigcode gpt_neo gptj openai-gpt opt"))


def position_table(config: PreTrainedConfig) -> int | None:
    """Return the longest sample that an LLM with a table of positions can read; None where positions are computed."""
    return config.max_position_embeddings if config.model_type in _TABLED else None


_TINY: dict[str, Any] = {
    **dict(hidden_size=32, n_embd=32, word_embed_proj_dim=32, intermediate_size=48, n_inner=48, ffn_dim=48),
    **dict(num_attention_heads=4, n_head=4, head_dim=8, global_head_dim=8, query_pre_attn_scalar=8),
    **dict(q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8),
    **dict(num_local_experts=4, num_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16),
    **dict(shared_expert_intermediate_size=16, n_group=1, topk_group=1, first_k_dense_replace=1),
    **dict(num_hidden_layers=2, n_layer=2, vocab_size=61, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    **dict(initializer_range=0.4),  # wide, so that attention tells tokens apart
}
_WINDOW = 5


def tiny(config: PreTrainedConfig, **changes: Any) -> PreTrainedConfig:
    """Return a two-layer copy of a config, every kind of layer kept, windows five tokens long; `changes` come last."""
    fields = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "architectures", "dtype")}
    small = {key: value for key, value in _TINY.items() if fields.get(key) is not None or key in changes}
    if (shared := fields.get("num_key_value_heads")) is not None:
        small["num_key_value_heads"] = 4 if shared == fields.get("num_attention_heads") else 2
    if fields.get("sliding_window") is not None:
        small["sliding_window"] = _WINDOW
    if kinds := list(dict.fromkeys(fields.get("layer_types") or ())):
        small["layer_types"] = kinds * 2 if len(kinds) == 1 else kinds
        small["num_hidden_layers"] = len(small["layer_types"])
    if "mlp_layer_types" in fields:
        small["mlp_layer_types"] = None
    return type(config)(**{**fields, **small, **changes})


@lru_cache(maxsize=32)
def _probe(fields: str) -> str | None:
    """Return why a tiny model of this family is not exact when packed, None if it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            config = tiny(AutoConfig.for_model(**json.loads(fields)))
            packed = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
            return compare(packed.eval())
        except Exception as error:
            # Whatever an unseen family may raise, the answer is the same: it is not packed, and the text says why.
            message = str(error).strip().split("\n")[0]
            return f"its two-layer probe failed ({type(error).__name__}: {message})"


@torch.no_grad()
def compare(model: PreTrainedModel) -> str | None:
    """Return how a packed row's logits, or those written on from it, differ from samples run alone; None if equal.

    The row holds a prefix with two branches and an isolated sample, all longer than the windows of a `tiny` config.
    What runs alone runs with the family's own eager attention.
    """
    layout = Layout((Segment(0, 9), Segment(9, 16, 0, 9), Segment(16, 18, 0, 9), Segment(18, 29)))
    embeddings = model.get_input_embeddings()(torch.randint(3, model.config.vocab_size, (1, layout.length + 1)))
    row, following = embeddings[:, :-1], embeddings[:, -1:]
    positions = torch.tensor([list(layout.positions())])
    together = model(
        inputs_embeds=row,
        position_ids=positions,
        layout=layout,
        logits_to_keep=torch.arange(layout.length),
        use_cache=False,
    ).logits[0]
    blind = model(inputs_embeds=row, position_ids=positions, use_cache=False).logits[0]
    decoded = _decode(model, row, following)
    model.set_attn_implementation("eager")
    error, sight, scale = 0.0, 0.0, 0.0
    for number, s in enumerate(layout.segments):
        own = [row[:, s.prefix_start : s.prefix_end], row[:, s.start : s.end], following]
        alone = model(inputs_embeds=torch.cat(own, dim=1), use_cache=False).logits[0, s.prefix_length :]
        pairs = [(together[s.start : s.end], alone[:-1]), *((d, alone[-1]) for n, d in decoded if n == number)]
        error = max(error, *((found - wanted).abs().max().item() for found, wanted in pairs))
        sight = max(sight, (blind[s.start : s.end] - alone[:-1]).abs().max().item())
        scale = max(scale, alone.abs().max().item())
    model.set_attn_implementation(attention.NAME)
    if not error <= 1e-4 * max(scale, 1e-3):
        return f"a packed row's logits differ by {error:.2g} from those of its samples run alone"
    if sight <= 1e-3 * scale:
        return "its probe cannot tell a packed row from a plain one"
    return None


def _decode(model: PreTrainedModel, row: Tensor, following: Tensor) -> list[tuple[int, Tensor]]:
    """Return (segment, logits) of one more token after the row's segments 1 (behind its prefix) and 3, in one batch."""

    def read(embeddings: Tensor, lengths: list[int], behind: list[Kept | None]) -> list[Kept]:
        reading = Reading(lengths, behind, row.device)
        positions = torch.tensor([list(reading.positions())])
        model(inputs_embeds=embeddings, position_ids=positions, layout=reading, use_cache=False)
        return reading.kept()

    prefix, alone = read(torch.cat([row[:, :9], row[:, 18:29]], dim=1), [9, 11], [None, None])
    (branch,) = read(row[:, 9:16], [7], [prefix])
    writing = Writing(row.device)
    writing.add([branch, alone])
    positions = writing.step()
    logits = model(
        inputs_embeds=following.expand(2, -1, -1), position_ids=positions, layout=writing, use_cache=False
    ).logits
    return [(1, logits[0, -1]), (3, logits[1, -1])]
