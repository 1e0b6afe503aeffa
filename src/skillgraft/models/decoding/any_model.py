"""Decoding by Transformers' own forward, with a cache that has its room from the start and drops rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class RoomyLayer(DynamicLayer):
    """A layer's cache with room for `room` more tokens than the first it is given, in the dtype of attention."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write keys and values (rows, heads, tokens, width) behind what is there; return all."""
        before, count = self.get_seq_length(), key_states.shape[-2]
        if not self.is_initialized:
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else key_states.dtype
            self.lazy_initialization(key_states.to(dtype), value_states.to(dtype))
            self.store = [
                torch.empty(*x.shape[:2], count + self.room, x.shape[-1], dtype=dtype)
                for x in (key_states, value_states)
            ]
        for store, new in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, before : before + count] = new
        self._show(before + count)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, which may repeat."""
        length = self.get_seq_length()
        self.store = [store.index_select(0, indices) for store in self.store]
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self.store)


class ModelDecoder:
    """The next token's logits for rows that begin together, by the model's own forward; `room` tokens of answers."""

    refills = False

    def __init__(self, model: PreTrainedModel, room: int) -> None:
        self._model, self._room = model, room
        self.rows = 0

    def admit(self, prompts: Sequence[Sequence[int]]) -> Float[Tensor, "rows words"]:
        """Read prompts, equal ones once, when there is no other row; return their logits in fp32."""
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
        ids, mask = (
            pad_sequence([make(prompt) for prompt in places], batch_first=True, padding_side="left")
            for make in (torch.tensor, lambda prompt: torch.ones(len(prompt), dtype=torch.long))
        )
        layers = self._model.config.get_text_config().num_hidden_layers
        self._cache = Cache(layers=[RoomyLayer(self._room) for _ in range(layers)])
        read = torch.tensor([places[tuple(prompt)] for prompt in prompts])
        logits = self._next(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))[read]
        self._cache.batch_select_indices(read)
        self._mask, self.rows = mask[read], len(prompts)
        return logits

    def step(self, tokens: Int[Tensor, " rows"]) -> Float[Tensor, "rows words"]:
        """Append a token to each row; return the logits of the next in fp32."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(self.rows, 1)], dim=1)
        return self._next(tokens[:, None], self._mask, self._mask.sum(-1, keepdim=True) - 1)

    def keep(self, going: Sequence[bool]) -> list[int]:
        """Drop the rows that are not `going`; return which row now stands in each place."""
        order = [place for place, on in enumerate(going) if on]
        if order:
            self._cache.batch_select_indices(torch.tensor(order))
            self._mask = self._mask[order]
        self.rows = len(order)
        return order

    def _next(self, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "past_key_values": self._cache}
        return self._model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()
