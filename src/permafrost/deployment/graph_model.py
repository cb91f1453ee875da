"""An exported graph that stands where a trained model does: tasks score it, answer by it and write with it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, GPT2Config, GPT2PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from permafrost.deployment.sessions import Session, open_session
from permafrost.model.block import take


class GraphModel:
    """As `GPT2WithHead`, but that its states are logits already: `head` adds nothing."""

    def __init__(self, path: Path, config: GPT2Config, *, threads: int = 0):
        self.session = open_session(path, threads)
        writes = "past_key_values.0.key" in self.session.input_names
        self.transformer = GraphLanguageModel(config, self.session) if writes else None
        self.head = nn.Identity()

    def __call__(self, input_ids: Tensor, lengths: Tensor, trunk_states: Tensor | None = None) -> Tensor:
        """(B, T) token ids, (B,) lengths -> (B, K), or (B, T, K) of a head over tokens or the vocabulary"""
        if self.transformer:
            return self.transformer(input_ids).logits
        given = {"input_ids": input_ids.numpy(), "lengths": lengths.numpy()}
        return torch.from_numpy(self.session.run(given)[0])

    def hidden_states(
        self,
        input_ids: Tensor,
        lengths: Tensor,
        positions: Tensor | None = None,
        trunk_states: Tensor | None = None,
    ) -> Tensor:
        """(B, T) -> (B, T, K) logits, or (B, Q, K) at `positions` (B, Q) alone."""
        logits = self(input_ids, lengths)
        return logits if positions is None else take(logits, positions)


class GraphLanguageModel(GPT2PreTrainedModel, GenerationMixin):
    """What Transformers' `generate` drives: its one forward pass is the graph's."""

    def __init__(self, config: GPT2Config, session: Session):
        super().__init__(config)
        self.session = session
        self.device_of = nn.Parameter(torch.empty(0), requires_grad=False)  # generate asks where the model is

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        use_cache: bool = True,
        **ignored: Any,
    ) -> CausalLMOutputWithPast:
        rows, tokens = input_ids.shape
        past = past_key_values.get_seq_length() if past_key_values else 0
        if attention_mask is None:
            attention_mask = torch.ones(rows, past + tokens, dtype=torch.int64)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -tokens:]
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        given |= self._cached(past_key_values if past else None, rows)
        logits, *parts = self.session.run({name: tensor.numpy() for name, tensor in given.items()})
        tensors = [torch.from_numpy(part) for part in parts]
        cache = DynamicCache(list(zip(tensors[::2], tensors[1::2], strict=True)))
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits), past_key_values=cache)

    def _cached(self, cache: Any, rows: int) -> dict[str, Tensor]:
        config: Any = self.config
        heads, width = getattr(config, "kept_heads", config.n_head), config.n_embd // config.n_head
        nothing = torch.empty(rows, heads, 0, width)
        return {
            f"past_key_values.{block}.{part}": getattr(cache.layers[block], f"{part}s") if cache else nothing
            for block in range(config.n_layer)
            for part in ("key", "value")
        }
