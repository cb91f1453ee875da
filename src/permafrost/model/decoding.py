"""Text from a trained language model: Transformers' own `generate`, over trunk and branch as one.

N prompts, B of them in a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, GPT2Model

_streamer: ContextVar[Any] = ContextVar("streamer", default=None)
TOKENS_AT_ONCE = 4096  # prompts and answers of a batch, beams counted


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen; the names are `generate`'s own."""

    max_new_tokens: int
    num_beams: int = 1  # 1 is greedy, or sampling
    length_penalty: float = 1.0  # of beams: above 0 favours long answers
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


@contextmanager
def streaming(streamer: Any) -> Iterator[None]:
    """`generate` hands what it writes to this one of Transformers' streamers, token by token; for one row. Of beams
    nothing is known before all are done, and it gets nothing."""
    token = _streamer.set(streamer)
    try:
        yield
    finally:
        _streamer.reset(token)


@contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """What is sampled within depends on the seed alone, and leaves what is drawn after it as it was."""
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            torch.cuda.manual_seed(seed)
        yield


class Draws:
    """Samples with numbers that each row brings along, in place of torch's: what a row is continued with then depends
    neither on the rows beside it nor on what was drawn before.

    `numbers` (B, max_new_tokens) are between 0 and 1. Draws among the `top_k` likeliest tokens.
    """

    def __init__(self, numbers: Tensor, top_k: int, temperature: float):
        self.numbers, self.top_k, self.temperature, self.step = numbers, top_k, temperature, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores -> the same, with one token of each row left to choose."""
        likeliest = scores.topk(self.top_k)
        shares = (likeliest.values / self.temperature).softmax(-1)
        reached = shares.cpu().cumsum(-1)  # which no GPU adds up alike each time
        place = (reached < self.numbers[:, self.step, None]).sum(-1, keepdim=True).clamp(max=self.top_k - 1)
        self.step += 1
        chosen = likeliest.indices.gather(1, place.to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


@torch.inference_mode()
def generate(
    backbone: "GPT2Model",
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    end_token_id: int,
    numbers: Sequence[Sequence[float]] | None = None,
) -> list[list[int]]:
    """(N,) prompts of token ids -> the tokens that follow each, up to the end token and without it.

    With `numbers` (N, max_new_tokens) each prompt draws by its own, see `Draws`.
    """
    model = as_language_model(backbone)
    modes = [(module, module.training) for module in backbone.modules()]  # the frozen part's is its own
    answers: list[list[int]] = [[] for _ in prompts]
    model.eval()
    for rows in batches_by_length(prompts, decoding):
        own = [numbers[row] for row in rows] if numbers is not None else None
        written = _generate_batch(model, [prompts[row] for row in rows], decoding, end_token_id, own)
        for row, tokens in zip(rows, written, strict=True):
            answers[row] = tokens
    for module, mode in modes:
        module.training = mode
    return answers


def as_language_model(backbone: "GPT2Model") -> "GPT2LMHeadModel":
    """The stock class around the same weights: no copy, and no memory for a second model."""
    from transformers import GenerationMixin, GPT2LMHeadModel

    if isinstance(backbone, GenerationMixin):  # it writes by itself
        return backbone  # type: ignore[return-value]
    with torch.device("meta"):
        model = GPT2LMHeadModel(backbone.config)
    model.transformer = backbone
    model.lm_head.weight = backbone.wte.weight
    return model


def batches_by_length(prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
    """Rows of each batch: prompts of like length together, so that few are filled up; the longest first. Where n-grams
    are not to come twice, of one length: those of the filling would count."""
    none_filled = decoding.no_repeat_ngram_size > 1
    order = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    batches: list[list[int]] = []
    for row in order:
        longest = len(prompts[batches[-1][0]]) if batches else 0
        room = TOKENS_AT_ONCE // max(1, (longest + decoding.max_new_tokens) * decoding.num_beams)
        fits = len(prompts[row]) == longest or not none_filled
        if batches and fits and len(batches[-1]) < max(1, room):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _generate_batch(
    model: "GPT2LMHeadModel",
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    end_token_id: int,
    numbers: Sequence[Sequence[float]] | None,
) -> list[list[int]]:
    device, choice = model.device, options_of(decoding)
    if numbers is not None:
        draws = Draws(torch.tensor(numbers), decoding.top_k, decoding.temperature)
        choice = options_of(replace(decoding, do_sample=False)) | {"logits_processor": [draws]}
    longest = max(len(prompt) for prompt in prompts)
    input_ids = np.empty((len(prompts), longest), np.int64)
    mask = np.zeros_like(input_ids)
    for ids, real, prompt in zip(input_ids, mask, prompts, strict=True):
        ids[: longest - len(prompt)] = prompt[0]  # unseen, but penalties for repetition count it: not the end of text
        ids[longest - len(prompt) :], real[longest - len(prompt) :] = prompt, 1  # a prompt ends where its answer begins
    with any_order_of_sums() if decoding.do_sample and device.type == "cuda" else nullcontext():
        written: Any = model.generate(  # type: ignore[misc]
            input_ids=torch.from_numpy(input_ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            eos_token_id=end_token_id,
            pad_token_id=end_token_id,
            use_cache=True,
            streamer=_streamer.get() if decoding.num_beams == 1 else None,
            **choice,
        )
    return [_until(row[longest:].tolist(), end_token_id) for row in written]


@contextmanager
def any_order_of_sums() -> Iterator[None]:
    """With `top_p` Transformers adds probabilities up by a kernel that has no deterministic form on a GPU."""
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def options_of(decoding: Decoding) -> dict[str, Any]:
    """As keywords of `generate`, without those that it says it does not use."""
    options = asdict(decoding)
    if decoding.num_beams == 1:
        del options["length_penalty"]
    if not decoding.do_sample:
        options |= {"temperature": None, "top_p": None, "top_k": None}
    return options


def _until(tokens: list[int], end_token_id: int) -> list[int]:
    return tokens[: tokens.index(end_token_id)] if end_token_id in tokens else tokens
