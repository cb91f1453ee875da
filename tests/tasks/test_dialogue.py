"""Dialogues: which tokens carry loss, what is left out, and the prompt that a reply is written from."""

import pyarrow as pa
import pytest
import torch
from transformers import GPT2LMHeadModel

from permafrost.errors import ConfigError
from permafrost.model.decoding import Decoding
from permafrost.tasks.base import Encoding
from permafrost.tasks.dialogue import Dialogue, reply_prompt, speakers_of
from permafrost.tasks.preparation import encode_table
from permafrost.tasks.turns import TURN, Turn, check_turn, oldest_that_fits, turn_windows
from permafrost.tasks.writing import write

END = "<|endoftext|>"


def make_task(replies: str = "all", max_new_tokens: int = 4) -> Dialogue:
    return Dialogue(replies, Decoding(max_new_tokens=max_new_tokens))


def dialogue(*turns: tuple[str, str]) -> pa.Table:
    return pa.table({"speakers": [[speaker for speaker, _ in turns]], "turns": [[text for _, text in turns]]})


THREE = dialogue(("A", "hi"), ("B", "yes"), ("A", "no"))


def written_out(tokenizer, split, row: int) -> tuple[str, str]:
    """The whole window, and what of it carries loss."""
    ids, labels = split.input_ids[row], split.labels[row]
    return tokenizer.decode(ids), tokenizer.decode(labels[labels != -100])


def test_loss_is_on_what_replies_say_and_on_their_ends(tiny_tokenizer):
    split = encode_table(make_task(), THREE, Encoding(tokenizer=tiny_tokenizer, max_length=64))
    assert written_out(tiny_tokenizer, split, 0) == (f"A: hi{END}B: yes{END}A: no{END}", f" yes{END} no{END}")


def test_loss_may_be_on_one_speaker_alone(tiny_tokenizer):
    split = encode_table(make_task("A"), THREE, Encoding(tokenizer=tiny_tokenizer, max_length=64))
    assert written_out(tiny_tokenizer, split, 0)[1] == f" hi{END} no{END}"


def test_every_reply_is_scored_once_and_the_oldest_turns_are_left_out(tiny_tokenizer):
    turns = [("AB"[i % 2], f"{'xyz'[i % 3]}{i}") for i in range(12)]
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=32)
    split = encode_table(make_task(), dialogue(*turns), encoding)
    windows = [written_out(tiny_tokenizer, split, row) for row in range(len(split))]
    assert len(windows) > 1
    assert "".join(scored for _, scored in windows) == "".join(f" {text}{END}" for _, text in turns[1:])
    assert all(text.startswith(("A: ", "B: ")) and text.endswith(END) for text, _ in windows)  # whole turns
    assert split.source_rows.tolist() == [0] * len(windows)
    assert max(split.lengths) <= 32
    assert split.truncated_rows == 0


def test_a_turn_longer_than_the_window_is_cut_and_counted(tiny_tokenizer):
    split = encode_table(
        make_task(), dialogue(("A", "x"), ("B", "y" * 100)), Encoding(tokenizer=tiny_tokenizer, max_length=16)
    )
    assert split.truncated_rows == 1
    assert max(split.lengths) == 16


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([4, 4, 4], 12, [(0, 0, 3)]),
        ([4, 4, 4], 11, [(0, 0, 2), (1, 2, 3)]),
        ([4, 4, 4, 4], 8, [(0, 0, 2), (1, 2, 3), (2, 3, 4)]),
        ([9, 9], 8, [(0, 0, 1), (1, 1, 2)]),
        ([], 8, []),
    ],
)
def test_windows_of_turns_written_out(lengths, limit, expected):
    assert turn_windows(lengths, limit) == expected


@pytest.mark.parametrize(("room", "first"), [(0, 3), (2, 3), (3, 2), (7, 1), (9, 0), (99, 0)])
def test_the_oldest_turn_that_fits(room, first):
    assert oldest_that_fits([2, 4, 3], room) == first


def test_a_reply_is_written_from_whole_turns_and_its_marker():
    turns = [Turn([1], [10, 11, 0], False), Turn([2], [20, 0], True), Turn([1], [99], True)]
    assert reply_prompt(turns, 100) == [1, 10, 11, 0, 2, 20, 0, 1]
    assert reply_prompt(turns, 7) == [2, 20, 0, 1]  # the oldest turn does not fit
    assert reply_prompt([Turn([1], [10, 11, 12, 0], False), turns[2]], 4) == [11, 12, 0, 1]  # nor does the only one


@pytest.mark.parametrize(
    ("replies", "speakers", "next_speaker"),
    [
        ("all", ["A"], "B"),
        ("all", ["A", "B"], "A"),
        ("all", ["user", "system", "user"], "system"),
        ("bot", ["A"], "bot"),
    ],
)
def test_who_answers(replies, speakers, next_speaker):
    row = make_task(replies).to_answer(speakers, ["x"] * len(speakers))
    assert row == {"speakers": [*speakers, next_speaker], "turns": [*["x"] * len(speakers), ""]}


def test_the_speaker_whose_replies_are_learned_must_be_there():
    splits = {"train": pa.table({"speakers": [["user", "system"]]})}
    assert speakers_of(splits, "all") == speakers_of(splits, "system") == ["user", "system"]
    with pytest.raises(ConfigError, match=r"task.replies=sytem: .* did you mean 'system'"):
        speakers_of(splits, "sytem")


@pytest.mark.parametrize(
    ("dialogues", "replies", "person", "answers"),
    [
        (["AB", "ABA"], "all", "A", "B"),
        (["us", "usus"], "all", "u", "s"),  # by the alphabet it would be the other way round
        (["us", "usus"], "u", "s", "u"),
        (["suaua", "suau"], "all", "u", "a"),  # a system's turn, a user's, an assistant's
        (["suaua", "suau"], "a", "u", "a"),
        (["x", "xx"], "all", "x", "x"),
    ],
)
def test_a_person_is_who_asks_and_the_model_who_answers(dialogues, replies, person, answers):
    splits = {"train": pa.table({"speakers": [list(row) for row in dialogues]})}
    task = Dialogue.from_rows(splits, {"replies": replies, "decoding": {"max_new_tokens": 4}, "turn": TURN})
    (row,) = task.rows_of(["hi"])
    assert row == {"speakers": [person, answers], "turns": ["hi", ""]}


def test_what_comes_after_the_last_reply_is_neither_asked_nor_scored(tiny_tokenizer, tiny_config):
    task, encoding = make_task("B"), Encoding(tokenizer=tiny_tokenizer, max_length=64)
    short = {"speakers": ["A", "B"], "turns": ["hi", "yes"]}
    longer = {"speakers": ["A", "B", "A"], "turns": ["hi", "yes", "thanks a lot"]}
    assert task.asked(longer) == task.asked(short) == short
    backbone = GPT2LMHeadModel(tiny_config).transformer
    assert write(task, backbone, [longer], encoding) == write(task, backbone, [short], encoding)
    assert task.score(["yes"], [longer])["exact_match"] == 1
    taught = task.with_answers(pa.Table.from_pylist([longer]), ["no"])
    assert taught["turns"].to_pylist() == [["hi", "no", "thanks a lot"]]
    silent = {"speakers": ["A", "A"], "turns": ["hi", "hello"]}
    assert task.asked(silent) == silent


def test_an_answer_that_takes_the_whole_window_is_refused_before_training(tiny_tokenizer):
    with pytest.raises(ConfigError, match=r"max_new_tokens=16 leaves no room .* window of 16 tokens: give fewer"):
        encode_table(make_task(max_new_tokens=16), THREE, Encoding(tokenizer=tiny_tokenizer, max_length=16))


def test_the_last_turn_is_written_whatever_stands_there(tiny_tokenizer, tiny_config):
    backbone, encoding = GPT2LMHeadModel(tiny_config).transformer, Encoding(tokenizer=tiny_tokenizer, max_length=64)
    rows = THREE.to_pylist()
    other = [{**rows[0], "turns": [*rows[0]["turns"][:-1], "something else"]}]
    assert write(make_task(), backbone, rows, encoding) == write(make_task(), backbone, other, encoding)


@pytest.mark.parametrize("text", ["", " ", "🎉", "日本語", "x " * 400])
def test_any_text_gets_a_reply(tiny_tokenizer, tiny_config, text):
    torch.manual_seed(0)
    backbone = GPT2LMHeadModel(tiny_config).transformer
    rows = make_task().rows_of([text])
    assert len(write(make_task(), backbone, rows, Encoding(tokenizer=tiny_tokenizer, max_length=32))) == 1


def test_written_replies_take_the_last_turns_place_unless_they_are_empty():
    rows = pa.table({"speakers": [["A", "B"], ["A", "B"]], "turns": [["hi", "ho"], ["well", "so"]]})
    taught = make_task("B").with_answers(rows, ["hey", ""])
    assert taught["turns"].to_pylist() == [["hi", "hey"], ["well", "so"]]
    assert taught["speakers"].to_pylist() == [["A", "B"], ["A", "B"]]


def test_markers_are_configured_and_kept(tiny_tokenizer):
    task = Dialogue("all", Decoding(max_new_tokens=8), ["user", "bot"], "[{speaker}]{text}")
    again = Dialogue.from_description(task.describe())
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=64)
    row = {"speakers": ["user", "bot"], "turns": ["hi", "day"]}
    ids = [token for turn in again.turns_of(row, encoding) for token in (*turn.marker, *turn.text)]
    assert tiny_tokenizer.decode(ids) == "[user] hi<|endoftext|>[bot] day<|endoftext|>"


@pytest.mark.parametrize("turn", ["{text}", "{speaker}", "{text}{speaker}", "{speaker}{text}."])
def test_a_turn_without_its_fields_is_refused(turn):
    with pytest.raises(ConfigError, match=r"it must hold {speaker} and end with {text}"):
        check_turn(turn)


def test_a_window_without_room_for_the_marker_is_refused(tiny_tokenizer):
    """Where the marker took all that answers leave, the turn before it was given whole, whatever its length."""
    marker = len(tiny_tokenizer("A:", add_special_tokens=False)["input_ids"])
    task = Dialogue("all", Decoding(max_new_tokens=8))
    for room in range(1, 2 + marker):
        with pytest.raises(ConfigError, match="leaves no room"):
            task.room(Encoding(tokenizer=tiny_tokenizer, max_length=8 + room))
    encoding = Encoding(tokenizer=tiny_tokenizer, max_length=10 + marker)
    rows = [{"speakers": ["A", "B"], "turns": ["a warm day " * 50, ""]}]
    assert len(task.prompts(rows, encoding).ids[0]) == 2 + marker


def test_a_dialogue_in_which_nobody_replies_is_not_scored():
    task = Dialogue("bot", Decoding(max_new_tokens=8), ["user", "bot"])
    replied = {"speakers": ["user", "bot"], "turns": ["hi", "day"]}
    alone = {"speakers": ["user", "user"], "turns": ["hi", "night"]}
    assert task.score(["day", "night"], [replied, alone]) == task.score(["day"], [replied])
    assert task.score(["day", "warm"], [replied, alone])["exact_match"] == 1.0
    assert set(task.score(["warm"], [alone]).values()) == {0.0}
