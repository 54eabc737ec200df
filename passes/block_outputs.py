"""Names the projections that end an attention and an MLP: what they give out is added to the residual stream."""

from __future__ import annotations

# By family; the model builder calls self_attn attn.
OUTPUTS = (
    "self_attn.o_proj",  # Llama, Mistral, Qwen, Gemma, Granite, Phi-3, SmolLM3, ERNIE, HunYuan
    "attn.o_proj",
    "mlp.down_proj",
    "attn.c_proj",  # GPT-2
    "mlp.c_proj",
    "attention.dense",  # GPT-NeoX
    "mlp.dense_4h_to_h",
    "self_attn.out_proj",  # OPT
    "fc2",
    "output.dense",  # BERT, ELECTRA, RoBERTa: attention.output.dense and output.dense
    "attention.out_lin",  # DistilBERT
    "ffn.lin2",
)


def is_block_output(name: str) -> bool:
    """Whether a linear layer, such as model.layers.0.self_attn.o_proj, is one of these."""
    return name.endswith(tuple(f".{output}" for output in OUTPUTS))
