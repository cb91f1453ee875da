"""GPT-2, loaded, cut at a depth and run block by block.

Shapes: B rows, T tokens, C channels, L blocks. The trunk is the embeddings and the first k blocks, the branch is the
rest and the final norm; running one after the other is the whole model, whatever k.
"""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from permafrost.errors import ConfigError, ResourceError
from permafrost.model.block import drop, run_block, take
from permafrost.model.flat_rows import flat_where_it_pays
from permafrost.model.packing import pack_where_it_pays, real_tokens
from permafrost.model.surgery import fewer_heads
from permafrost.safety.trust import check_model_directory

if TYPE_CHECKING:
    from transformers import GPT2Config, GPT2Model

SHIPPED = {"mini": Path(__file__).with_name("mini")}  # models that come with the package
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def locate(name_or_path: str) -> str:
    """Directory of a shipped model, else the local directory, else the name as the hub knows it."""
    if name_or_path in SHIPPED:
        return str(SHIPPED[name_or_path])
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path)
    if name_or_path.startswith((".", "/", "~")):
        raise ConfigError(f"model.path={name_or_path}: no such directory")
    return name_or_path


def load_config(source: str) -> "GPT2Config":
    """The architecture alone; reads one small file, and nothing of the weights."""
    from transformers import GPT2Config

    check_model_directory(Path(source))
    try:
        config = GPT2Config.from_pretrained(source)
    except (OSError, json.JSONDecodeError) as error:
        raise ResourceError(_unreachable(source)) from error
    if config.model_type != "gpt2":
        raise ConfigError(f"{source} is a {config.model_type!r} model; this program fine-tunes GPT-2")
    return config


def load_backbone(source: str, config: "GPT2Config", *, pretrained: bool) -> "GPT2Model":
    """The blocks without a head, in float32: pretrained weights, or GPT-2's own initialisation."""
    from transformers import GPT2Model

    if not pretrained:
        return GPT2Model(config)
    kind: Any = fewer_heads(config.kept_heads) if hasattr(config, "kept_heads") else GPT2Model
    try:
        loaded: Any = kind.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    except OSError as error:
        raise ResourceError(_unreachable(source)) from error
    except UnpicklingError:  # whose words are how to read it all the same
        raise ResourceError(
            f"the weights of {source!r} hold more than tensors, so they are not read; give a directory with "
            f"{WEIGHT_FILES[0]}, as save_pretrained writes it"
        ) from None
    except (RuntimeError, SafetensorError) as error:
        raise ResourceError(
            f"the weights of {source!r} are damaged, or of another shape than its config.json says: {error}; copy both "
            "again, or give another directory with model.path=DIR"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ResourceError(
            f"the weights of {source!r} lack {len(missing)} tensors, the first {missing[0]!r}; give a whole GPT-2 with "
            "model.path=DIR"
        )
    return model


def quiet_transformers() -> None:
    """No progress bars for files of a few megabytes, no report that a backbone was loaded without its old head."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def embed(backbone: "GPT2Model", input_ids: Tensor) -> Tensor:
    """(B, T) token ids -> (B, T, C). Positions are absolute and begin at 0 in every row."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    return drop(backbone.wte(input_ids) + backbone.wpe(positions), backbone.drop)


def trunk(backbone: "GPT2Model", input_ids: Tensor, depth: int, lengths: Tensor | None = None) -> Tensor:
    """(B, T) -> (B, T, C): the part below the cut."""
    return run_blocks(backbone.h[:depth], embed(backbone, input_ids), lengths)


def branch(
    backbone: "GPT2Model",
    hidden: Tensor,
    depth: int,
    positions: Tensor | None = None,
    lengths: Tensor | None = None,
    *,
    bidirectional: bool = False,
) -> Tensor:
    """(B, T, C) -> (B, T, C): the part above the cut, final norm included.

    With `positions` (B, Q) -> (B, Q, C): the top block and the norm are computed there alone. `bidirectional` lets
    every position see its whole row, of which `lengths` (B,) tells the end.
    """
    blocks, visible = backbone.h[depth:], None
    if bidirectional:
        assert lengths is not None, "who sees the whole row must know where it ends"
        visible = real_tokens(lengths, hidden.shape[1])[:, None, None]
    if positions is None:
        hidden = run_blocks(blocks, hidden, lengths, visible)
    elif len(blocks):
        hidden = run_blocks(blocks[:-1], hidden, lengths, visible)
        hidden = run_block(blocks[-1], hidden, positions, visible)
    else:
        hidden = take(hidden, positions)
    return backbone.ln_f(hidden)


def run_blocks(blocks: Any, hidden: Tensor, lengths: Tensor | None, visible: Tensor | None = None) -> Tensor:
    """(B, T, C) -> (B, T, C). With `lengths` (B,) a GPU may leave out the padding, of which no result says anything."""
    if not len(blocks):
        return hidden
    dropout = blocks[0].attn.attn_dropout
    has_dropout = dropout.training and dropout.p > 0
    packed_on_gpu = pack_where_it_pays(lengths, hidden, attention_dropout=has_dropout, causal=visible is None)
    packing = packed_on_gpu or flat_where_it_pays(hidden, visible)
    if packing is None:
        for block in blocks:
            hidden = run_block(block, hidden, visible=visible)
        return hidden
    packed = packing.pack(hidden)
    for block in blocks:
        packed = run_block(block, packed, visible=packing.mask)
    return packing.unpack(packed)


def _unreachable(source: str) -> str:
    return (
        f"cannot load the model {source!r}: it is neither a local directory with config.json and "
        f"{WEIGHT_FILES[0]}, nor reachable on the hub; give a directory with model.path=DIR"
    )
