"""Another tokenizer: what both know keeps its embedding, what is new begins as the mean of what it was in before."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models

from permafrost.data.tokens.tokenization import train_tokenizer
from permafrost.errors import ConfigError
from permafrost.model.vocabulary import mean_embeddings, pieces_of, read_by_

OTHERS = ["the street of the lazy fox: naïve, café, 😀", "empty books on the warm street", "the warm street"]


@pytest.fixture(scope="module")
def own(tiny_tokenizer):
    return tiny_tokenizer.backend_tokenizer


@pytest.fixture
def backbone(tiny_backbone):
    """Its configuration is its own, to be changed with it."""
    return copy.deepcopy(tiny_backbone)


@pytest.fixture(scope="module")
def other():
    return train_tokenizer(OTHERS, vocab_size=290, max_length=64).backend_tokenizer


def test_a_mean_by_hand():
    embeddings = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    expected = torch.tensor([[5.0, 1.0], [2.0, 4.0], [3.0, 3.0]])
    assert torch.equal(mean_embeddings(embeddings, [[2], [0, 1], [0, 1, 2]]), expected)


def test_pieces_are_what_the_old_tokenizer_makes_of_the_text(own, other):
    """Of all that is text; what ends within a character is spelled by its bytes."""
    pieces, names = pieces_of(own, other), {index: name for name, index in other.get_vocab().items()}
    known, texts = own.get_vocab(), 0
    for index, of_token in enumerate(pieces):
        assert "".join(own.id_to_token(piece) for piece in of_token) == names[index]
        text = other.decode([index])
        if names[index] in known:
            assert of_token == [known[names[index]]]
        elif "\ufffd" not in text:
            assert of_token == own.encode(text).ids
            texts += 1
    assert texts > 20


def test_the_same_tokenizer_changes_nothing(backbone, own):
    before = copy.deepcopy(backbone.state_dict())
    read_by_(backbone, pieces_of(own, own))
    after = backbone.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_the_embeddings_are_trained_and_as_many_as_the_new_tokens(backbone, own, other):
    read_by_(backbone, pieces_of(own, other))
    assert backbone.wte.weight.requires_grad
    assert backbone.wte.num_embeddings == backbone.config.vocab_size == other.get_vocab_size() == 290


def test_a_token_that_cannot_be_written_is_named(own):
    with pytest.raises(ConfigError, match=r"'▁street'; give a byte-level BPE"):
        pieces_of(own, Tokenizer(models.WordLevel({"street": 0, "▁street": 1}, "street")))
