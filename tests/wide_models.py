"""The widths of a real model, for arithmetic that needs no weights."""

from raysift.settings.memory import shape_of

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
}
"""The configuration of Llama 3.1 with 8 billion weights."""
SHAPE_8B = shape_of(LLAMA_8B)
