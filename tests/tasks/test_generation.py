"""A text from a text: which token carries loss, what is cut, when writing stops, and Transformers' own generate."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from permafrost.data.tokens.batching import padded_batch
from permafrost.errors import ConfigError
from permafrost.model.decoding import Decoding, any_order_of_sums, batches_by_length, generate
from permafrost.model.freezing import Freezing
from permafrost.model.gpt2 import GPT2WithHead
from permafrost.tasks.base import Encoding
from permafrost.tasks.generation import Generation
from permafrost.tasks.losses import CrossEntropy
from permafrost.tasks.preparation import encode_table, first_row_shown, shortened
from permafrost.tasks.prompts import read_template
from permafrost.tasks.writing import write

TEMPLATE = "Q:{source}\nA:{target}"


def make_task(max_new_tokens: int = 6, **options) -> Generation:
    return Generation(TEMPLATE, Decoding(max_new_tokens=max_new_tokens, **options))


def pairs(*rows: tuple[str, list[str]]) -> pa.Table:
    return pa.table({"source": [source for source, _ in rows], "references": [targets for _, targets in rows]})


def written_out(tokenizer, split, row: int) -> tuple[str, str]:
    """The whole row, and the part that carries loss."""
    ids, labels = split.input_ids[row], split.labels[row]
    assert np.array_equal(ids[labels != -100], labels[labels != -100])
    return tokenizer.decode(ids), tokenizer.decode(labels[labels != -100])


def test_loss_is_on_the_target_and_its_end(tiny_tokenizer):
    split = encode_table(make_task(), pairs(("xy", ["ab"])), Encoding(tokenizer=tiny_tokenizer, max_length=64))
    assert written_out(tiny_tokenizer, split, 0) == ("Q: xy\nA: ab<|endoftext|>", " ab<|endoftext|>")
    assert split.num_targets.tolist() == [int((split.labels[0] != -100).sum())]


def test_each_reference_is_a_row_of_its_source(tiny_tokenizer):
    rows = pairs(("x", ["a", "b"]), ("y", ["c"]))
    split = encode_table(make_task(), rows, Encoding(tokenizer=tiny_tokenizer, max_length=64))
    assert [written_out(tiny_tokenizer, split, row)[0] for row in range(3)] == [
        "Q: x\nA: a<|endoftext|>",
        "Q: x\nA: b<|endoftext|>",
        "Q: y\nA: c<|endoftext|>",
    ]
    assert split.source_rows.tolist() == [0, 0, 1]


def test_what_is_too_long_is_cut_at_its_end_and_counted(tiny_tokenizer):
    """The prompt keeps its last words, which lead to the answer."""
    rows = pairs(("xyzxyzxyz", ["a"]), ("x", ["abcdabcd"]), ("x", ["a"]))
    split = encode_table(make_task(max_new_tokens=5), rows, Encoding(tokenizer=tiny_tokenizer, max_length=16))
    whole = [written_out(tiny_tokenizer, split, row) for row in range(3)]
    prompt, target = whole[0][0].split("\n")
    assert prompt.startswith("Q: xyz")
    assert target == "A: a<|endoftext|>"
    assert len(split.input_ids[0]) <= 16
    assert "<|endoftext|>" not in whole[1][1]
    assert split.truncated_rows == 2


@pytest.mark.parametrize("source", ["", "x", "🎉🎉", "日本語", "word " * 300, "a\nb"])
def test_any_source_is_written_from(tiny_tokenizer, tiny_backbone, source):
    written = write(make_task(), tiny_backbone, [{"source": source}], Encoding(tokenizer=tiny_tokenizer, max_length=32))
    assert len(written) == 1


@pytest.mark.parametrize("template", ["{source}", "{target}{source}", "{source}{target}", "{source} to {target}."])
def test_a_template_that_does_not_lead_to_an_answer(template):
    with pytest.raises(ConfigError, match=r"it must hold \{source\}"):
        read_template(template)


def test_a_template_longer_than_the_window(tiny_tokenizer):
    task = Generation("a b c d e f g h i j{source}\n{target}", Decoding(max_new_tokens=4))
    with pytest.raises(ConfigError, match="alone has"):
        encode_table(task, pairs(("x", ["a"])), Encoding(tokenizer=tiny_tokenizer, max_length=12))


def test_the_first_row_is_shown_as_the_model_sees_it(tiny_tokenizer):
    split = encode_table(make_task(), pairs(("xy", ["ab"])), Encoding(tokenizer=tiny_tokenizer, max_length=64))
    text, tokens = first_row_shown(split, tiny_tokenizer)
    assert text.endswith("in brackets: 'Q: xy\\nA:[ ab<|endoftext|>]'")
    assert tokens == "its tokens: Q : Ġ x y Ċ A : [Ġa] [b] [<|endoftext|>]"


def test_of_a_long_first_row_both_ends_are_shown():
    tokens = [str(number) for number in range(200)]
    assert shortened(tokens) == [*tokens[:48], "...", *tokens[-48:]]
    assert shortened(tokens[:96]) == tokens[:96]


def test_the_loss_is_that_of_transformers_with_the_same_labels(tiny_tokenizer, tiny_config):
    reference = GPT2LMHeadModel(tiny_config).eval()
    model = GPT2WithHead(
        reference.transformer, make_task().build_head(reference.transformer), Freezing(embeddings=False, blocks=0)
    ).eval()
    rows = pairs(("xy", ["ab"]), ("a longer one", ["c d e"]))
    split = encode_table(make_task(), rows, Encoding(tokenizer=tiny_tokenizer, max_length=64))
    batch = padded_batch(split, np.array([0, 1]))
    with torch.no_grad():
        total, _ = make_task().loss_sum(model, batch, CrossEntropy())
        real = torch.arange(batch.input_ids.shape[1]) < batch.lengths[:, None]
        mean = reference(batch.input_ids, attention_mask=real.long(), labels=batch.labels).loss
    torch.testing.assert_close(total / batch.num_targets, mean)


def test_written_texts_take_the_references_place_unless_they_are_empty():
    rows = pairs(("x", ["a", "b"]), ("y", ["c"]))
    taught = make_task().with_answers(rows, ["w", ""])
    assert taught["references"].to_pylist() == [["w"], ["c"]]
    assert taught["source"].to_pylist() == ["x", "y"]
    assert taught.schema == rows.schema


PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [5, 6, 7], [20] * 12]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"num_beams": 3, "length_penalty": 0.6},
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    ],
    ids=["greedy", "beams", "without repetition"],
)
def test_batches_write_what_generate_writes_for_each_alone(tiny_config, how):
    torch.manual_seed(1)
    model = GPT2LMHeadModel(tiny_config).eval()
    for weight in model.transformer.parameters():  # so that what stands before the last token decides
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    decoding = Decoding(max_new_tokens=8, **how)
    written = generate(model.transformer, PROMPTS, decoding, end_token_id=0)
    assert any(len(set(row)) > 1 for row in written)  # no echo of the last token
    assert written != generate(model.transformer, [prompt[-1:] for prompt in PROMPTS], decoding, end_token_id=0)
    for prompt, answer in zip(PROMPTS, written, strict=True):
        alone = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=8, do_sample=False, eos_token_id=0, pad_token_id=0, **how,
        )  # fmt: skip
        expected = alone[0, len(prompt) :].tolist()
        assert answer == (expected[: expected.index(0)] if 0 in expected else expected)


def test_penalties_for_repetition_count_no_end_of_text_that_only_fills_up(tiny_config):
    """Where the end is the likeliest token by a little, a short prompt beside a long one still ends at once."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[0])
        model.transformer.wte.weight[0] *= 50
    for how in ({"repetition_penalty": 100.0}, {"no_repeat_ngram_size": 1}):
        assert generate(model.transformer, PROMPTS, Decoding(max_new_tokens=8, **how), end_token_id=0) == [[]] * 5


def test_writing_stops_at_the_end_of_text(tiny_config):
    model = GPT2LMHeadModel(tiny_config).eval()
    with torch.no_grad():  # the end of text is the likeliest token of all, whatever came before
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.transformer.wte.weight[0])
        model.transformer.wte.weight[0] *= 50
    assert generate(model.transformer, PROMPTS, Decoding(max_new_tokens=8), end_token_id=0) == [[]] * 5


def test_what_a_gpu_adds_up_in_any_order_does_so_within_alone():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with any_order_of_sums():
            assert not torch.are_deterministic_algorithms_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_sampling_is_seeded_and_differs(tiny_config):
    model, decoding = (
        GPT2LMHeadModel(tiny_config),
        Decoding(max_new_tokens=8, do_sample=True, temperature=2.0, top_k=50),
    )
    written = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        written.append(generate(model.transformer, PROMPTS, decoding, end_token_id=0))
    assert written[0] == written[1] != written[2]


def test_what_is_left_by_top_p_and_top_k_is_drawn_from(tiny_config):
    """Of the likeliest token alone there is nothing to draw; of two, no third one is drawn."""
    torch.manual_seed(2)
    model = GPT2LMHeadModel(tiny_config)

    def written(seed: int = 0, **how) -> list[list[int]]:
        torch.manual_seed(seed)
        return generate(model.transformer, PROMPTS, Decoding(max_new_tokens=8, **how), end_token_id=0)

    assert written(do_sample=True, top_p=1e-6) == written(do_sample=True, top_k=1) == written()
    assert written(do_sample=True, temperature=1e-4) == written()
    model.eval()
    two = model(torch.tensor([PROMPTS[0]])).logits[0, -1].topk(2).indices.tolist()
    first = {row[0][0] if row[0] else 0 for row in (written(seed, do_sample=True, top_k=2) for seed in range(20))}
    assert first == set(two)


def test_writing_leaves_the_model_in_the_mode_that_it_was_in(tiny_config):
    backbone = GPT2LMHeadModel(tiny_config).transformer.train()
    backbone.h[0].eval()
    before = [module.training for module in backbone.modules()]
    generate(backbone, PROMPTS[:1], Decoding(max_new_tokens=1), end_token_id=0)
    assert [module.training for module in backbone.modules()] == before


def test_prompts_of_like_length_are_written_together():
    prompts = [[1] * length for length in (3, 900, 4, 3, 880, 5)]
    batches = batches_by_length(prompts, Decoding(max_new_tokens=100, num_beams=2))
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    assert batches == [[1, 4], [5, 2, 0, 3]]


DRAWN = Decoding(max_new_tokens=6, do_sample=True, top_k=20)


def test_rows_with_numbers_of_their_own_are_drawn_alike_in_any_batch(tiny_backbone):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 290, length).tolist() for length in (3, 9, 5, 9, 20)]
    numbers = rng.random((5, 6)).tolist()
    state = torch.random.get_rng_state()
    together = generate(tiny_backbone, prompts, DRAWN, end_token_id=0, numbers=numbers)
    alone = [
        generate(tiny_backbone, [prompt], DRAWN, end_token_id=0, numbers=[own])[0]
        for prompt, own in zip(prompts, numbers, strict=True)
    ]
    others = generate(tiny_backbone, prompts, DRAWN, end_token_id=0, numbers=rng.random((5, 6)).tolist())
    assert together == alone
    assert together != others
    assert torch.equal(torch.random.get_rng_state(), state)


def test_numbers_draw_as_often_as_the_likeliest_tokens_are_likely(tiny_backbone):
    """Evenly spaced numbers give each token its share of them, to one; against the logits of plain Transformers."""
    prompt, count = [5, 17, 80], 2000
    numbers = [[(number + 0.5) / count] for number in range(count)]
    one = Decoding(max_new_tokens=1, do_sample=True, top_k=20, temperature=0.7)
    drawn = generate(tiny_backbone, [prompt] * count, one, end_token_id=0, numbers=numbers)
    model = GPT2LMHeadModel(tiny_backbone.config).eval()
    model.transformer.load_state_dict(tiny_backbone.state_dict())
    model.tie_weights()
    with torch.inference_mode():
        scores = model(torch.tensor([prompt])).logits[0, -1].topk(20)
    expected = (scores.values / 0.7).softmax(-1) * count
    for token, share in zip(scores.indices.tolist(), expected.tolist(), strict=True):
        assert abs(sum((row or [0]) == [token] for row in drawn) - share) <= 1.5
