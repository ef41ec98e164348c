import copy
import pickle
import re
import time

import pytest

from fastreward.errors import InputError
from fastreward.rewards.completion import Extractor, completion_text, without_thinking


def assistant(content: object) -> dict[str, object]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("text", ["The heart pumps.", "", "  spaces stay \n", "😀 \ud83d"])
def test_a_string_is_its_own_text(text):
    assert completion_text(text) == text


@pytest.mark.parametrize(
    ("conversation", "text"),
    [
        ([assistant("one")], "one"),
        ((assistant("a tuple of messages"),), "a tuple of messages"),
        ([assistant("one"), assistant("two")], "two"),
        ([assistant("one"), {"role": "tool", "content": "42"}], "one"),
        ([assistant("one"), {"role": "user", "content": "why?"}, assistant("two")], "two"),
        ([assistant("one"), assistant(None)], "one"),
        ([assistant("one"), assistant(" \n")], "one"),
        ([assistant("one"), {"role": "assistant", "tool_calls": []}], "one"),
        ([{"role": "tool", "content": {"any": "thing"}}, assistant("one")], "one"),
        ([assistant([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])], "one two"),
        ([assistant([{"type": "image", "image": b""}, {"type": "text", "text": "seen"}])], "seen"),
        ([assistant("one"), assistant([{"type": "image"}])], "one"),
        ([assistant(({"type": "text", "text": "a tuple of blocks"},))], "a tuple of blocks"),
        ([{"role": "user", "content": "only a question"}], ""),
        ([assistant(None)], ""),
        ([assistant([])], ""),
        ([], ""),
    ],
)
def test_the_last_assistant_message_that_has_text_counts(conversation, text):
    assert completion_text(conversation) == text


@pytest.mark.parametrize(
    ("completion", "named"),
    [
        (None, "NoneType None"),
        (7, "int 7"),
        (b"bytes", "bytes b'bytes'"),
        (assistant("a message alone"), "dict"),
        (["text in a list"], "str 'text in a list'"),
        ([None], "NoneType None"),
        ([{"content": "no role"}], "no role"),
        ([{"role": None, "content": "no role"}], "None"),
        ([assistant(7)], "int 7"),
        ([assistant({"type": "text", "text": "a block alone"})], "dict"),
        ([assistant(["text in a list"])], "str 'text in a list'"),
        ([assistant([{"text": "no type"}])], "no type"),
        ([assistant([{"type": "text"}])], "{'type': 'text'}"),
        ([assistant([{"type": "text", "text": None}])], "None"),
    ],
)
def test_anything_else_is_an_error_that_names_what_came(completion, named):
    with pytest.raises(InputError) as caught:
        completion_text(completion)
    assert named in caught.value.received


def test_the_error_shortens_what_came():
    with pytest.raises(InputError) as caught:
        completion_text([assistant(["x" * 100_000])])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("no thinking", "no thinking"),
        ("  spaces stay \n", "  spaces stay \n"),
        ("<think>a</think>\n\nrest\n", "rest"),
        ("<THINK>a</Think>rest", "rest"),
        ("<think>a\nb</think>rest", "rest"),
        ("one <think>a</think>two <think>b</think>three", "one two three"),
        ("a</think> rest", "rest"),
        ("a</think> b</think> rest", "rest"),
        ("a</think> one <think>b</think> two", "one  two"),
        ("one <think>a</think> b</think> rest", "rest"),
        ("<think>what <think> means</think> rest", "rest"),
        ("<think>a <think>b</think> c</think> rest", "rest"),
        ("<think></think>", ""),
        ("<thinking>another tag</thinking>", "<thinking>another tag</thinking>"),
        ("", ""),
    ],
)
def test_thinking_is_removed(text, rest):
    assert without_thinking(text) == rest


@pytest.mark.parametrize("text", ["<think>", "<think>a", "rest <think>a", "<think>a</think> rest <think>b"])
def test_thinking_that_is_never_closed_leaves_no_text(text):
    assert without_thinking(text) is None
    assert Extractor()(text) is None


@pytest.mark.parametrize("extract", ["explanation", None])
@pytest.mark.parametrize(
    "unit", ["<think>", "</think>", "<think></think>", "<explanation>", "</explanation>"]
)
def test_a_megabyte_of_repeated_tags_takes_linear_time(unit, extract):
    text = unit * (2**20 // len(unit))
    start = time.process_time()
    Extractor(extract)(text)
    assert time.process_time() - start < 5  # a quadratic scan takes minutes


def test_the_whole_text_counts_by_default():
    assert Extractor()("<think>a</think> The rest. ") == "The rest."
    assert Extractor()(" As it is.\n") == " As it is.\n"


def test_stripping_of_thinking_can_be_switched_off():
    text = "<think>a</think> rest"
    assert Extractor(strip_thinking=False)(text) == text
    assert Extractor("think", strip_thinking=False)(text) == "a"
    assert Extractor("answer", strip_thinking=False)("<think><answer>B</answer>") == "B"


@pytest.mark.parametrize("extract", [None, "explanation", re.compile(r"(?s).*"), str])
@pytest.mark.parametrize("text", ["", " \n\t", "<think>a</think> \n"])
def test_white_space_alone_is_nothing(extract, text):
    assert Extractor(extract)(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<explanation>It pumps.</explanation>", "It pumps."),
        ("<explanation>\n  It\npumps. \n</explanation> <answer>B</answer>", "It\npumps."),
        ("<EXPLANATION>It pumps.</Explanation>", "It pumps."),
        ("<explanation>one</explanation> <explanation>two</explanation>", "two"),
        ("<explanation>one</explanation> <explanation>two", "one"),
        ("in <explanation> tags: <explanation>one</explanation>", "one"),
        ("<explanation>one</explanation></explanation>", "one"),
        ("<explanation><b>one</b></explanation>", "<b>one</b>"),
        ("<think><explanation>draft</explanation></think><explanation>one</explanation>", "one"),
        ("<think><explanation>draft</explanation></think> none", None),
        ("<explanation>one", None),
        ("one</explanation>", None),
        ("</explanation>one<explanation>", None),
        ("<explanation></explanation>", None),
        ("<explanation> \n</explanation>", None),
        ("<explanation>one</explanation><explanation> </explanation>", None),
        ("<explanations>one</explanations>", None),
        ("no tags", None),
    ],
)
def test_a_tag_takes_what_is_in_its_last_complete_pair(text, found):
    assert Extractor("explanation")(text) == found


@pytest.mark.parametrize("tag", ["answer", "step-2", "final_answer", "spiegazione", "explicação", "A1"])
def test_any_name_of_letters_digits_dashes_and_underscores_is_a_tag(tag):
    assert Extractor(tag)(f"<{tag}>B</{tag}>") == "B"


@pytest.mark.parametrize("tag", ["", " ", "<answer>", "answer:", "a b", "answer\n", r"Answer: (.*)"])
def test_a_string_that_is_no_tag_name_is_sent_to_re_compile(tag):
    with pytest.raises(InputError, match=r"re\.compile") as caught:
        Extractor(tag)
    assert repr(tag) in caught.value.received


@pytest.mark.parametrize("tag", ["think", "Think"])
def test_a_tag_that_has_just_been_stripped_is_refused(tag):
    with pytest.raises(InputError, match="strip_thinking=False"):
        Extractor(tag)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"(?P<label>\w+): (?P<text>\w+)", "blood"),  # the group named text
        (r"(\w+): (\w+)", "answer"),  # the first group
        (r"\w+: \w+", "answer: blood"),  # the whole match
        (r"(?s).*", "first: heart; answer: blood"),  # not the empty match that follows at the end
        (r"(?=answer: (\w+))", "blood"),  # an empty match with a group that is not
        (r"answer(\d+)?", None),  # the group took no part in the match
        (r"(\s*)answer", None),  # white space alone is nothing
        (r"second: (\w+)", None),
    ],
)
def test_a_pattern_takes_its_last_match(pattern, found):
    text = "<think>x: y</think> first: heart; answer: blood"
    assert Extractor(re.compile(pattern))(text) == found


def test_a_function_sees_the_text_without_thinking_and_its_result_is_used_as_it_is():
    assert Extractor(str.upper)("<think>a</think> rest") == "REST"
    assert Extractor(lambda text: f" {text} ")("rest") == " rest "


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_a_function_may_find_nothing(nothing):
    assert Extractor(lambda _: nothing)("text") is None


def test_a_function_is_not_asked_about_blank_text():
    assert Extractor(lambda _: "invented")("<think>unclosed") is None
    assert Extractor(lambda _: "invented")(" ") is None


@pytest.mark.parametrize("result", [7, b"bytes", ["text"]])
def test_a_function_that_returns_something_else_is_an_error(result):
    with pytest.raises(InputError) as caught:
        Extractor(lambda _: result)("text")
    assert repr(result) in caught.value.received


@pytest.mark.parametrize("extract", [7, ["explanation"], re.compile(rb"bytes")])
def test_an_extract_of_another_kind_is_an_error(extract):
    with pytest.raises(InputError, match="extract"):
        Extractor(extract)


@pytest.mark.parametrize("extract", [None, "explanation", re.compile(r"<explanation>(.*)<"), str.upper])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda extractor: pickle.loads(pickle.dumps(extractor))])
def test_an_extractor_pickles_and_copies(extract, copied):
    text = "<think>a</think><explanation>one</explanation>"
    extractor = copied(Extractor(extract))
    assert extractor == Extractor(extract)
    assert extractor(text) == Extractor(extract)(text)
