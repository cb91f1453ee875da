"""An exported graph that stands where a trained model does: tasks score it, answer by it and write with it."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, GPT2Config, GPT2PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from permafrost.deployment.logits_model import LogitsModel
from permafrost.deployment.sessions import Session, open_session


def load_graph(path: Path, config: GPT2Config, *, threads: int = 0) -> LogitsModel:
    """`threads` are the session's; 0 is one for each core."""
    session = open_session(path, threads)
    if "past_key_values.0.key" in session.input_names:
        writer = GraphLanguageModel(config, session)
        return LogitsModel(lambda input_ids, lengths: writer(input_ids).logits, writer)

    def logits(input_ids: Tensor, lengths: Tensor) -> Tensor:
        return torch.from_numpy(session.run({"input_ids": input_ids.numpy(), "lengths": lengths.numpy()})[0])

    return LogitsModel(logits)


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
