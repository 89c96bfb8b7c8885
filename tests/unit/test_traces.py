import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdcore.errors import DataError
from sdcore.traces import (
    is_tag_piece,
    parse_trace,
    render_rest,
    render_trace,
    token_offsets,
    token_regions,
)

GOOD = "<step_1>2+3=5</step_1>\n<step_2>5+4=9</step_2><answer> 9 </answer>\n"
plain = st.text(st.characters(codec="utf-8", exclude_characters="<>"), min_size=1)
pieces = st.sampled_from(
    ["<step_1>", "</step_1>", "<step_2>", "</step_2>", "<answer>", "</answer>", "<step_0>", "7",
     "\\boxed{", "}", "\\}", "{", " ", "x", "<", "\u2028"]
)  # fmt: skip


def byte_level(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has seen little, so that it splits most characters beyond ASCII."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def byte_fallback() -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer: spaces as marks, unknown characters as single bytes."""
    bytes_ = {f"<0x{byte:02X}>": byte for byte in range(256)}
    words = {piece: 256 + i for i, piece in enumerate(["\u2581", *"abcdefghi123+=<>/_step"])}
    tokenizer = Tokenizer(models.BPE(bytes_ | words, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTE_LEVEL, BYTE_FALLBACK = byte_level([GOOD] * 9), byte_fallback()


def test_a_well_formed_trace_is_taken_apart():
    trace = parse_trace(GOOD)
    assert trace.well_formed and trace.flaw is None
    assert [(step.number, step.text, step.closed) for step in trace.steps] == [
        (1, "2+3=5", True),
        (2, "5+4=9", True),
    ]
    assert [GOOD[step.start : step.end] for step in trace.steps] == ["2+3=5", "5+4=9"]
    assert GOOD[: trace.steps[0].outer_end] == "<step_1>2+3=5</step_1>"
    assert trace.answer == "9" and GOOD[slice(*trace.answer_span)] == " 9 "
    assert [GOOD[slice(*tag)] for tag in trace.tags][-2:] == ["<answer>", "</answer>"]
    assert trace.sound == 2


@pytest.mark.parametrize(
    ("text", "steps", "answer", "sound", "flaw"),
    [
        ("", [], None, 0, "<answer> expected, the end found"),
        ("<step_1>2+3", ["2+3"], None, 0, "</step_1> expected, the end found"),
        ("<step_1>a</step_1><step_2>b", ["a", "b"], None, 1, "</step_2> expected, the end found"),
        ("<step_1>a</step_1>", ["a"], None, 1, "<answer> expected, the end found"),
        ("<step_1>a</step_1><answer>5", ["a"], None, 1, "</answer> expected, the end found"),
        ("<step_1>a<step_2>b</step_2><answer>4</answer>", ["a", "b"], "4", 0,
         "</step_1> expected, <step_2> found"),
        ("<step_2>a</step_2><answer>4</answer>", ["a"], "4", 0,
         "<step_1> expected, <step_2> found"),
        ("<step_1>a</step_1><step_1>b</step_1><answer>4</answer>", ["a", "b"], "4", 1,
         "<step_2> expected, <step_1> found"),
        ("<step_1>a</step_1><answer>4</answer><answer>5</answer>", ["a"], "5", 1,
         "the end expected, <answer> found"),
        ("<answer>4</answer><step_1>a</step_1>", ["a"], "4", 0,
         "<step_1> expected, <answer> found"),
        ("<step_1>a</step_1><answer>4</answer> so", ["a"], "4", 1, "text outside the tags"),
        ("So: <step_1>a</step_1><answer>4</answer>", ["a"], "4", 0, "text outside the tags"),
        ("<step_1>a</step_1>x<step_2>b</step_2><answer>4</answer>", ["a", "b"], "4", 1,
         "text outside the tags"),
        ("<step_1>a</step_1><answer> </answer>", ["a"], None, 1, "the answer is blank"),
        ("<answer>4</answer>", [], "4", 0, "no steps"),
        ("<step_01>a</step_01><answer>4</answer>", [], "4", 0, "text outside the tags"),
    ],
)  # fmt: skip
def test_malformed_and_truncated_text_keeps_what_can_be_read(text, steps, answer, sound, flaw):
    trace = parse_trace(text)
    assert [step.text for step in trace.steps] == steps
    assert (trace.answer, trace.sound, trace.flaw) == (answer, sound, flaw)
    assert not trace.well_formed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{3} then \boxed{4", "3"),
        (r"\boxed{3}<answer>5</answer>", "5"),
        (r"} \boxed{} {", None),
    ],
)
def test_the_last_closed_box_stands_in_for_an_answer_tag(text, answer):
    assert parse_trace(text).answer == answer


@given(st.lists(pieces).map("".join))
def test_any_text_parses_and_the_spans_are_of_what_they_name(text):
    trace = parse_trace(text)
    assert [text[step.start : step.end] for step in trace.steps] == [s.text for s in trace.steps]
    assert trace.well_formed == (trace.flaw is None)
    assert not trace.well_formed or trace.sound == len(trace.steps) > 0
    assert trace.answer is None or text[slice(*trace.answer_span)].strip() == trace.answer


@given(st.lists(plain, min_size=1, max_size=5), plain.map(str.strip).filter(bool))
def test_what_is_rendered_parses_back(steps, answer):
    trace = parse_trace(render_trace(steps, answer))
    assert trace.well_formed
    assert ([step.text for step in trace.steps], trace.answer) == (steps, answer)


def test_the_rest_of_a_trace_starts_after_the_kept_steps():
    trace = parse_trace(GOOD)
    assert render_rest(trace, 0) == GOOD.strip()
    assert render_rest(trace, 1) == "<step_2>5+4=9</step_2><answer> 9 </answer>"
    assert render_rest(trace, 2) == "<answer> 9 </answer>"
    assert render_trace(["x"], "9", first=3) == "<step_3>x</step_3><answer>9</answer>"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["bytes", "fallback"])
@settings(deadline=None)
@given(text=st.lists(st.one_of(st.text(), pieces)).map("".join))
def test_offsets_tile_the_decoded_text(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    offsets = token_offsets(tokenizer, ids)
    assert len(offsets) == len(ids)
    spans = list(dict.fromkeys(offsets))  # tokens of one character share its span
    assert "".join(decoded[start:end] for start, end in spans) == decoded


@settings(deadline=None)
@given(st.lists(st.integers(0, 255), max_size=30))
def test_offsets_tile_bytes_that_are_no_text(ids):
    for tokenizer in (BYTE_LEVEL, BYTE_FALLBACK):
        decoded = tokenizer.decode(ids, skip_special_tokens=True)
        spans = dict.fromkeys(token_offsets(tokenizer, ids))
        assert "".join(decoded[start:end] for start, end in spans) == decoded


def test_each_token_is_where_its_text_is():
    text = "a \u00e9+\U0001f600="  # é is two bytes, the emoji four, and no merge joins them
    ids = BYTE_LEVEL.encode(text)
    offsets = token_offsets(BYTE_LEVEL, [*ids, BYTE_LEVEL.eos_token_id])
    pieces_ = [text[start:end] for start, end in offsets]
    assert "".join(pieces_[:2]) == "a " and pieces_[-2:] == ["=", ""]
    assert pieces_.count("\u00e9") == 2 and pieces_.count("\U0001f600") == 4


def test_a_character_cut_off_at_the_end_still_has_a_place():
    ids = BYTE_LEVEL.encode("x\U0001f600")[:-1]
    assert token_offsets(BYTE_LEVEL, ids) == [(0, 1)] + [(1, 2)] * 3


def regions(text: str, first_wrong: int | None, cuts: list[int]):
    offsets = list(zip([0, *cuts], [*cuts, len(text)], strict=True))
    return token_regions(parse_trace(text), offsets, first_wrong)


def test_regions_follow_the_first_wrong_step():
    text = "<step_1>a</step_1><step_2>b</step_2><step_3>c</step_3><answer>4</answer>x"
    #       0       8 9       18      26 27     36      44 45     54      62 63      72
    cuts = [8, 9, 18, 26, 27, 36, 44, 45, 54, 62, 63, 72]
    tag = (None, "tag")
    expected = [tag, (1, "before"), tag, tag, (2, "at"), tag, tag, (3, "after"), tag, tag]
    assert regions(text, 2, cuts) == [*expected, (None, "answer"), tag, (None, "other")]
    kinds = {region for _, region in regions(text, None, cuts)}
    assert kinds == {"before", "tag", "answer", "other"}


def test_a_straddling_token_belongs_where_most_of_it_lies():
    text = "<step_1>abc</step_1>"
    # "<step_1>a" has 8 characters of tag and 1 of step; "bc<" has 2 of step and 1 of tag
    assert regions(text, 1, [9, 12]) == [(None, "tag"), (1, "at"), (None, "tag")]


def test_a_token_without_text_is_other():
    trace = parse_trace("<step_1>a")
    assert token_regions(trace, [(0, 8), (8, 9), (9, 9)], 1)[1:] == [(1, "at"), (None, "other")]


def test_offsets_of_another_text_are_refused():
    with pytest.raises(DataError, match="do not fit"):
        token_regions(parse_trace("abc"), [(0, 2)], None)


def test_pieces_of_tags_are_told_from_control_tokens():
    pieces = (
        "<step_1>",
        "</step_12>",
        "<answer>",
        "</answer>",
        "<step_",
        "</",
        "<",
        "_1>",
        " step",
    )
    control = ("<eos>", "<|im_end|>", "</s>", "<s>", "<pad>", "<think>", "[INST]", "", "<unk>")
    assert all(map(is_tag_piece, pieces))
    assert not any(map(is_tag_piece, control))
