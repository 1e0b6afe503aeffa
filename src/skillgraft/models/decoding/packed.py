"""Decoding of Llama-shaped models on the CPU: weights packed once, queries, keys and values in one product.

Transformers' own forward hands each weight matrix to oneDNN in rows, which packs it anew for every token, and takes
some seventy operations a layer. Here the weights are packed when a decoder is made, the matrices that read the same
input are one, and a token takes some twenty operations a layer. Between the products all is in fp32; products and
attention are in the dtype of the decoder. Keys and values have room from the start, one slot a row, and rows may come
and go while others go on.

oneDNN: https://github.com/uxlfoundation/oneDNN (its packed weights are what Torch's compiler freezes models to).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SHAPED = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Classes of Transformers whose layers are computed here."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""Takes a layer's number and its queries, keys and values, (tokens, heads, width); returns (tokens, heads · width)."""

READ_TOKENS = 1 << 14
"""Tokens of prompts that are read at once."""


def is_packable(model: PreTrainedModel) -> bool:
    """Return whether a `PackedDecoder` computes this model: its class, full attention, a rotary table, on the CPU."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        type(model) in SHAPED
        and model.device.type == "cpu"
        and config.hidden_act == "silu"
        and set(kinds) == {"full_attention"}
        and not windowed
        and rotary in {"default", "linear", "llama3", "yarn"}
    )


class _Matrix:
    """One or more linear layers of the same input as one product."""

    def __init__(self, layers: Sequence[nn.Module], dtype: torch.dtype, rows: int) -> None:
        plain = [getattr(layer, "base_layer", layer) for layer in layers]  # PEFT's merged layers keep theirs there
        self._weight = torch.cat([layer.weight.detach().to(dtype) for layer in plain])
        biases = [layer.bias for layer in plain]
        self._bias = None
        if any(bias is not None for bias in biases):
            zeros = [layer.weight.new_zeros(layer.weight.shape[0]) for layer in plain]
            pairs = zip(biases, zeros, strict=True)
            self._bias = torch.cat([(zero if bias is None else bias.detach()).to(dtype) for bias, zero in pairs])
        self._packed = _packs()
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, rows)

    def __call__(self, x: Float[Tensor, "rows inside"]) -> Float[Tensor, "rows outside"]:
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return linear(x, self._weight, self._bias)


def _packs() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


class _Layer(NamedTuple):
    before: Tensor
    qkv: _Matrix
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: _Matrix
    after: Tensor
    gate_up: _Matrix
    down: _Matrix


class PackedDecoder:
    """The next token's logits for rows that come and go, from a snapshot of a model's weights.

    `rows` is the most that there can be at once, `length` the most tokens of prompt and answer of a row. All prompts
    begin with `prefix`, which is read once, and go on after it.
    """

    refills = True

    def __init__(
        self, model: PreTrainedModel, rows: int, length: int, dtype: torch.dtype, prefix: Sequence[int] = ()
    ) -> None:
        config = model.config
        self._dtype, self._eps = dtype, config.rms_norm_eps
        attention = model.model.layers[0].self_attn
        self._width, self._scale = attention.head_dim, attention.scaling
        self._heads, self._groups = config.num_attention_heads, config.num_key_value_heads
        self._rotary = model.model.rotary_emb
        self._embed = model.get_input_embeddings().weight.detach()
        self._norm = model.model.norm.weight.detach().float()
        self._layers = [_packed_layer(layer, dtype, rows) for layer in model.model.layers]
        self._head = _Matrix([model.get_output_embeddings()], dtype, rows)
        shape = (len(self._layers), 2, rows, self._groups, length, self._width)
        self._cache = torch.zeros(shape, dtype=dtype)  # what is masked is multiplied by 0, and must be finite
        self._lengths = torch.zeros(rows, dtype=torch.long)
        self.rows = 0
        self._prefix: list[tuple[Tensor, Tensor]] = []
        if prefix:
            self._through_prompts([tuple(prefix)], self._prefix.append)

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "new words"]:
        """Read prompts, equal ones once, into new rows behind those that are there; return their logits in fp32."""
        slots: dict[tuple[int, ...], list[int]] = {tuple(prompt): [] for prompt in prompts}
        for number, prompt in enumerate(prompts):
            slots[tuple(prompt)].append(self.rows + number)
        logits, read = [], []
        for chunk in _chunks(sorted(slots, key=len)):
            logits.append(self._read(chunk, [slots[prompt] for prompt in chunk]))
            read += chunk
        self.rows += len(prompts)
        places = {prompt: place for place, prompt in enumerate(read)}
        return torch.cat(logits)[[places[tuple(prompt)] for prompt in prompts]]

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows words"]:
        """Append a token to each row; return the logits of the next in fp32."""
        n, lengths = self.rows, self._lengths[: self.rows]
        longest, places = int(lengths.max()) + 1, torch.arange(self.rows)
        hidden = torch.zeros(n, 1, 1, longest).masked_fill_(
            (torch.arange(longest) > lengths[:, None])[:, None, None], -torch.inf
        )

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._cache[layer]
            keys[places, :, lengths], values[places, :, lengths] = k, v
            seen_keys, seen_values = (x.flatten(0, 1)[: n * self._groups, :longest] for x in (keys, values))
            grouped = q.reshape(n * self._groups, -1, self._width)  # the queries that see the same keys
            scores = torch.bmm(grouped, seen_keys.mT).float().view(n, self._groups, -1, longest)
            weights = scores.mul_(self._scale).add_(hidden).softmax(-1).to(self._dtype)
            return torch.bmm(weights.flatten(0, 1), seen_values).view(n, -1)

        x = self._through(self._embed[tokens].float(), lengths, attend)
        self._lengths[:n] += 1
        return self._logits(x)

    def keep(self, going: Sequence[bool]) -> list[int]:
        """Drop the rows that are not `going`; return which row now stands in each place."""
        order = list(range(self.rows))
        for place in reversed(range(self.rows)):
            if not going[order[place]]:
                last = len(order) - 1
                if place != last:
                    length = int(self._lengths[last])
                    self._cache[:, :, place, :, :length] = self._cache[:, :, last, :, :length]
                    self._lengths[place] = length
                    order[place] = order[last]
                order.pop()
        self.rows = len(order)
        return order

    def _read(self, prompts: Sequence[tuple[int, ...]], slots: Sequence[Sequence[int]]) -> Float[Tensor, "new words"]:
        rows = torch.tensor([slot for each in slots for slot in each])
        read = torch.tensor([n for n, each in enumerate(slots) for _ in each])
        layers = iter(self._cache)

        def keep(both: tuple[Tensor, Tensor]) -> None:
            for store, new in zip(next(layers), both, strict=True):
                store[rows, :, : new.shape[2]] = new[read]

        last = self._through_prompts(prompts, keep)
        self._lengths[rows] = torch.tensor([len(prompt) for prompt in prompts])[read]
        return self._logits(last)

    def _through_prompts(
        self, prompts: Sequence[tuple[int, ...]], keep: Callable[[tuple[Tensor, Tensor]], None]
    ) -> Float[Tensor, "prompts hidden"]:
        """Compute what follows the prefix in each prompt, without padding but for attention; return the last states.

        `keep` gets each layer's keys and values, (prompts, groups, tokens, width), the prefix's included.
        """
        before = self._prefix[0][0].shape[2] if self._prefix else 0
        sizes = torch.tensor([len(prompt) - before for prompt in prompts])
        count, longest = len(prompts), int(sizes.max())
        there = torch.arange(longest) < sizes[:, None]
        seen = torch.ones(longest, before + longest, dtype=torch.bool).tril(before)
        layers = iter(self._prefix)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            padded = []
            for x in (q, k, v):
                room = x.new_zeros(count, longest, *x.shape[1:])
                room[there] = x
                padded.append(room.transpose(1, 2))
            q, k, v = padded
            if before:
                k, v = (
                    torch.cat([p.expand(count, -1, -1, -1), x], 2) for p, x in zip(next(layers), (k, v), strict=True)
                )
            keep((k, v))
            mixed = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self._scale, enable_gqa=True)
            return mixed.transpose(1, 2)[there].flatten(1)

        ids = torch.tensor([token for prompt in prompts for token in prompt[before:]])
        positions = (before + torch.arange(longest)).expand(count, -1)[there]
        return self._through(self._embed[ids].float(), positions, attend)[sizes.cumsum(0) - 1]

    def _through(self, x: Float[Tensor, "tokens hidden"], positions: Int[Tensor, " tokens"], attend: Attend) -> Tensor:
        heads, groups, width = self._heads, self._groups, self._width
        cos, sin = (part[0, :, None] for part in self._rotary(x, positions[None]))
        for number, layer in enumerate(self._layers):
            q, k, v = layer.qkv(self._normed(x, layer.before)).view(len(x), -1, width).split([heads, groups, groups], 1)
            if layer.q_norm is not None and layer.k_norm is not None:
                q, k = (rms_norm(y.float(), (width,), w, self._eps) for y, w in ((q, layer.q_norm), (k, layer.k_norm)))
            turned = torch.cat([q, k], dim=1).float()
            first, second = turned.chunk(2, dim=-1)
            turned = (turned * cos).addcmul_(torch.cat([-second, first], dim=-1), sin).to(self._dtype)
            x = x + layer.out(attend(number, turned[:, :heads], turned[:, heads:], v))
            gate, up = layer.gate_up(self._normed(x, layer.after)).chunk(2, dim=-1)
            x = x + layer.down(silu(gate) * up)
        return x

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, (x.shape[-1],), weight, self._eps).to(self._dtype)

    def _logits(self, x: Tensor) -> Tensor:
        return self._head(self._normed(x, self._norm)).float()


def _packed_layer(layer: nn.Module, dtype: torch.dtype, rows: int) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    q_norm, k_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return _Layer(
        before=layer.input_layernorm.weight.detach().float(),
        qkv=_Matrix([attention.q_proj, attention.k_proj, attention.v_proj], dtype, rows),
        q_norm=None if q_norm is None else q_norm.weight.detach().float(),
        k_norm=None if k_norm is None else k_norm.weight.detach().float(),
        out=_Matrix([attention.o_proj], dtype, rows),
        after=layer.post_attention_layernorm.weight.detach().float(),
        gate_up=_Matrix([mlp.gate_proj, mlp.up_proj], dtype, rows),
        down=_Matrix([mlp.down_proj], dtype, rows),
    )


def _chunks(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Cut prompts of growing length into batches of at most `READ_TOKENS` padded tokens, or one prompt."""
    chunks: list[list[tuple[int, ...]]] = []
    for prompt in prompts:
        if not chunks or (len(chunks[-1]) + 1) * len(prompt) > READ_TOKENS:
            chunks.append([])
        chunks[-1].append(prompt)
    return chunks
