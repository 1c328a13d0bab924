"""From a model's reply to sentences: what is kept, what is cleaned away, and what counts as the same."""

from __future__ import annotations

import json

import pytest

from MedCLIPSAMLib.language_answers import sentences, without_repetitions

PLAIN = [
    "A dark mass with irregular margins.",
    "An oval nodule in fatty tissue.",
    "T2-weighted bright lesion of the brain.",
]


@pytest.mark.parametrize(
    "reply",
    [
        "\n".join(PLAIN),
        "\r\n\r\n".join(PLAIN),
        "Sure! Here are 3 captions:\n\n" + "\n".join(f"{i}. {one}" for i, one in enumerate(PLAIN, 1)) + "\n\nEnjoy!",
        "\n".join(f"- **{one}**" for one in PLAIN),
        "\n".join(f"{i}) “{one}”" for i, one in enumerate(PLAIN, 1)),
        "\n".join(f'* "{one}",' for one in PLAIN),
        "```\n" + "\n".join(PLAIN) + "\n```\nLet me know if you need more.",
        "```json\n" + json.dumps(PLAIN) + "\n```",
        json.dumps({"captions": [{"caption": one} for one in PLAIN]}),
        "<think>\n1. The user wants captions.\n2. I should comply fully.\n</think>\n" + "\n".join(PLAIN),
        "The user wants captions about masses.\n</think>\n\n" + "\n".join(PLAIN),
        " ".join(PLAIN),
        "Here are the captions:\n" + "\n".join(f"  • {one}  " for one in PLAIN),
    ],
)  # fmt: skip
def test_many_forms_give_the_same_sentences(reply: str) -> None:
    assert sentences(reply) == PLAIN


@pytest.mark.parametrize(
    "reply", ["", "Sorry, I cannot help with that.", "Tumor.", "<think>A long thought of no end", "[]", "{", "12.\n13."]
)
def test_no_sentence_is_none(reply: str) -> None:
    assert sentences(reply) == []


def test_a_reply_that_was_cut_off_loses_its_last_line() -> None:
    assert sentences("A dark mass in the breast.\nA bright nodule with a", whole=False) == [
        "A dark mass in the breast."
    ]
    assert sentences('["A dark mass in the breast.",\n"A bright nodule', whole=False) == ["A dark mass in the breast."]
    assert sentences('[\n"A dark mass in the breast.",\n"A bright nodule', whole=False) == [
        "A dark mass in the breast."
    ]


def test_nothing_that_steers_a_terminal_or_hides_gets_through() -> None:
    assert sentences("A dark \x1b[31mmass\u200b with\u202e edges.\x07") == ["A dark [31mmass with edges."]


def test_an_endless_line_is_no_prompt() -> None:
    assert sentences("A dark mass " + "very " * 200 + "dark.\nA dark mass in the breast.") == [
        "A dark mass in the breast."
    ]


def test_quotes_inside_a_sentence_stay() -> None:
    line = 'A "popcorn" calcification beside a "dark" mass'
    assert sentences(f"{line}\nThe patient's breast with a mass.") == [line, "The patient's breast with a mass."]


def test_repetitions_are_dropped_and_differences_kept() -> None:
    first = "A hypoechoic mass with irregular margins in the breast."
    same = [
        "a hypoechoic mass with irregular margins in the breast",
        "The hypoechoic mass, with irregular margins, in a breast.",
        "In the breast, a hypoechoic mass with irregular margins.",
    ]
    other = ["A hypoechoic mass with regular margins in the breast.", "A hyperechoic mass with irregular margins."]
    assert without_repetitions([first, *same, *other]) == [first, *other]
    assert without_repetitions([*same, other[0]], known=[first]) == [first, other[0]]
