"""A trained model as one ONNX file, that ONNX Runtime runs without torch: checked against the model before it is kept.

B rows, T tokens, P tokens that were read before, K outputs, V vocabulary, H heads of D channels.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from permafrost.deployment.graph_model import GraphLanguageModel
from permafrost.deployment.sessions import import_onnx, open_session
from permafrost.errors import ConfigError, ResourceError
from permafrost.model.decoding import Decoding, as_language_model, generate
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.model.heads import PooledHead, TiedHead
from permafrost.storage.atomic import complete_or_absent

TOLERANCE = 1e-4  # of a logit, as a share of the largest
NO_WINDOWS = (
    "head=windows reads rows of several windows, which an ONNX graph cannot: int8, int4 and --to onnx are for the "
    "other heads; fewer and narrower blocks are for this one, too"
)
GREEDY = Decoding(max_new_tokens=8)


class HeadGraph(nn.Module):
    """(B, T) token ids, (B,) lengths -> (B, K) of a pooled head, (B, T, K) of one over tokens."""

    inputs = ("input_ids", "lengths")
    outputs = ("logits",)

    def __init__(self, model: GPT2WithHead):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        model = self.model
        input_ids, lengths = model.as_run(input_ids, input_ids, lengths)
        states = model.below_the_cut(input_ids, lengths)
        return model.head(model.above_the_cut(states, lengths, model.head.reads(lengths)), lengths)


class CachedGraph(nn.Module):
    """(B, T) new tokens, their (B, P + T) mask and (B, T) positions, and the keys and values (B, H, P, D) of those
    before them -> (B, T, V) logits, and the keys and values of all."""

    def __init__(self, model: Any):
        super().__init__()
        self.model, self.blocks = model, model.config.n_layer
        self.inputs = ("input_ids", "attention_mask", "position_ids", *self.cache_names("past_key_values"))
        self.outputs = ("logits", *self.cache_names("present"))

    def cache_names(self, prefix: str) -> list[str]:
        return [f"{prefix}.{block}.{part}" for block in range(self.blocks) for part in ("key", "value")]

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past: Sequence[Any]) -> Any:
        from transformers import DynamicCache

        found = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=DynamicCache(past),
            use_cache=True,
        )
        present = [part for layer in found.past_key_values.layers for part in (layer.keys, layer.values)]
        return (found.logits, *present)


def export_onnx(model: GPT2WithHead, path: Path, *, tied: bool = False) -> None:
    """Write the graph; nothing is written where it does not give what the model gives. `tied` keeps a language model's
    embedding and head one matrix: smaller, and slow in ONNX Runtime (`untied`).

    Raises:
        ConfigError: the head reads more than a window, or a package is missing.
        ResourceError: the graph's answers differ from the model's.
    """
    import_onnx()
    if isinstance(model.head, TiedHead):
        graph, arguments, shapes = _cached(as_language_model(model.transformer) if tied else untied(model))
    else:
        graph, arguments, shapes = _with_head(model)
    with complete_or_absent(path) as partial, torch.no_grad(), quiet():
        torch.onnx.export(
            graph.eval(),
            arguments,
            partial,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            dynamic_shapes=shapes,
        )
        check_parity(graph, arguments, partial)
        if isinstance(graph, CachedGraph):
            check_greedy(graph.model, partial)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporter and quantizer say about themselves: what they make is checked."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def check_parity(graph: Any, arguments: Sequence[Any], path: Path) -> None:
    """On other shapes than those of the export, too."""
    session = open_session(path)
    for given in (arguments, _longer(graph, arguments)):
        expected = graph(*given)
        logits = expected if isinstance(expected, Tensor) else expected[0]
        found = session.run(named_inputs(graph, given))[0]
        gap = float(np.abs(found - logits.numpy()).max() / max(1.0, float(logits.abs().max())))
        if not gap < TOLERANCE:
            raise ResourceError(f"{path.name}: the ONNX graph's logits differ from the model's by {gap:.1e}; not kept")


def check_greedy(language_model: Any, path: Path) -> None:
    """The graph writes, token by token from its cache, what the model writes."""
    graph: Any = GraphLanguageModel(language_model.config, open_session(path))
    prompts = _some_ids(language_model.config, 2, 5).tolist()
    ours, theirs = (generate(model, prompts, GREEDY, end_token_id=-1) for model in (graph, language_model))
    if ours != theirs:
        raise ResourceError(f"{path.name}: the ONNX graph writes {ours} where the model writes {theirs}; not kept")


def named_inputs(graph: Any, arguments: Sequence[Any]) -> dict[str, np.ndarray]:
    flat = [leaf for argument in arguments for leaf in _leaves(argument)]
    return {name: tensor.numpy() for name, tensor in zip(graph.inputs, flat, strict=True)}


def _leaves(argument: Any) -> list[Tensor]:
    if isinstance(argument, Tensor):
        return [argument]
    return [leaf for part in argument for leaf in _leaves(part)]


def _with_head(model: GPT2WithHead) -> tuple[Any, Any, Any]:
    if isinstance(model.head, PooledHead) and model.head.pooling == "windows":
        raise ConfigError(NO_WINDOWS)
    rows, tokens = torch.export.Dim.DYNAMIC, torch.export.Dim("tokens", min=2, max=model.window)
    arguments = (_some_ids(model.transformer.config, 3, 5), torch.tensor([5, 2, 4]))
    return HeadGraph(model), arguments, ({0: rows, 1: tokens}, {0: rows})


def _cached(language_model: Any) -> tuple[Any, Any, Any]:
    graph, config = CachedGraph(language_model), language_model.config
    heads = getattr(config, "kept_heads", config.n_head)
    keys = [torch.randn(3, heads, 4, config.n_embd // config.n_head) for _ in range(2 * config.n_layer)]
    past = list(zip(keys[::2], keys[1::2], strict=True))
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[1, :2] = 0  # as on the left of a shorter prompt
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, 4:]
    any_size = torch.export.Dim.DYNAMIC
    ids, of_cache = {0: any_size, 1: any_size}, {0: any_size, 2: any_size}
    shapes = (ids, dict(ids), dict(ids), [(dict(of_cache), dict(of_cache)) for _ in past])
    return graph, (_some_ids(config, 3, 5), mask, positions, past), shapes


def untied(model: GPT2WithHead) -> Any:
    """A language model whose head is a matrix of its own: quantized while tied, ONNX Runtime would unpack all of the
    embedding for each token (half the speed, measured)."""
    language_model = copy.deepcopy(as_language_model(model.transformer))
    language_model.config.tie_word_embeddings = False
    language_model.lm_head.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    return language_model


def _some_ids(config: Any, rows: int, tokens: int) -> Tensor:
    return torch.randint(0, config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(0))


def _longer(graph: Any, arguments: Sequence[Any]) -> Sequence[Any]:
    """Two rows of seven tokens; a cache of nothing."""
    ids = torch.cat([arguments[0], arguments[0]], dim=1)[:2, :7]
    if isinstance(graph, HeadGraph):
        return ids, torch.tensor([7, 3])
    empty = [(key[:2, :, :0], value[:2, :, :0]) for key, value in arguments[3]]
    mask = torch.ones_like(ids)
    return ids, mask, mask.cumsum(1) - 1, empty
