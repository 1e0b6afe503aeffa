"""Decoding on the CPU: `sample` draws many answers; a decoder computes the next token's logits for rows.

`packed` computes Llama-shaped models itself, `any_model` runs Transformers' own forward.
"""
