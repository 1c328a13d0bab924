"""The question to a language model: words alone may leave, and only to where the user said."""

from __future__ import annotations

import json
import re

import pytest

from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.language_question import Question, check_endpoint, check_phrase

HERE = "http://localhost:11434/v1"


def question(**changes: object) -> Question:
    """A question that is fine but for the changes."""
    given = {"target": "breast tumor", "modality": "breast ultrasound", "endpoint": HERE, "model": "llama3.2:3b"}
    return Question(**{**given, **changes})


def test_the_papers_sentence_is_asked() -> None:
    one = question(target="  breast\n tumor ")
    paper = "Give a sentence caption that describes unique visual features of breast tumor in breast ultrasound."
    assert one.text.startswith(f"{paper} Give 20 different ones, one a line")
    assert question(count=1).text == f"{paper} Reply with that sentence alone."
    assert json.loads(one.body) == {"model": "llama3.2:3b", "messages": [{"role": "user", "content": one.text}]}
    assert one.url == "http://localhost:11434/v1/chat/completions"


def test_what_is_shown_is_what_is_sent() -> None:
    one = question(target="опухоль", endpoint="https://api.example.org/v1/")
    shown = one.outgoing(with_key=True)
    assert shown.splitlines()[0] == "POST https://api.example.org/v1/chat/completions"
    assert shown.endswith(one.body) and "опухоль" in shown
    assert "(your key)" in shown and "(your key)" not in one.outgoing(with_key=False)
    assert not one.stays_here and question().stays_here


@pytest.mark.parametrize(
    "phrase",
    ["breast tumor", "COVID-19 pneumonia", "T2-weighted brain MRI", "18F-FDG PET-CT", "Crohn's disease", "disc L4-L5",
     "脑肿瘤", "मस्तिष्क ट्यूमर", "MS lesion", "newborn brain", "3D ultrasound", "decreased perfusion",
     "May-Hegglin anomaly"],
)  # fmt: skip
def test_phrases_of_a_field_pass(phrase: str) -> None:
    assert check_phrase(phrase, "target", "breast tumor") == phrase


@pytest.mark.parametrize(
    ("phrase", "reason"),
    [
        ("", "holds no word"), ("  ", "holds no word"), (None, "holds no word"), ("12", "holds no word"),
        ("scan.nii.gz", "holds '.'"), ("tumor.png", "holds '.'"), ("/data/case tumor", "holds '/'"),
        (r"C:\scans\tumor", "holds ':'"), ("patient_tumor", "holds '_'"), ("tumor, Doe", "holds ','"),
        ("tumor (left)", "holds '('"), ("a@b", "holds '@'"), ("tumor\u200bmass", r"holds '\u200b'"),
        ("tumor #4", "holds '#'"), ("tumor\x00", r"holds '\x00'"), ("tumor 🙂", "holds"), ("½ tumor", "holds '⁄'"),
        ("tumor 1234567", "digits"), ("tumor AB12345", "digits"), ("tumor 2019", "digits"),
        ("tumor A1B2C3D4", "digits"),
        ("tumor 12 AB 34 CD 56", "digits"), ("tumor 1 2 3 4 5", "digits"), ("tumor ١٢٣٤", "digits"),
        ("tumor １２３", "digits"),
        ("tumor 12-03", "date"), ("tumor 12 03", "date"), ("tumor 3 May", "date"),
        ("tumor March 12", "date"), ("tumor 12-Mar", "date"), ("tumor 3rd Sept", "date"),
        ("tumor of patient Smith", "speaks of a patient"), ("tumor MRN", "speaks of a patient"),
        ("tumor named Smith", "speaks of a patient"), ("a b c d e f g h i", "9 words"), ("x" * 81, "81 characters"),
    ],
)  # fmt: skip
def test_what_could_tell_of_a_patient_is_refused(phrase: str, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)) as caught:
        check_phrase(phrase, "target", "breast tumor")
    assert "breast tumor" in str(caught.value) and "Only words leave this computer" in str(caught.value)
    for name in ("target", "modality"):
        with pytest.raises(InputError, match=f"the {name} "):
            question(**{name: phrase})


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("https://api.example.org/v1", "https://api.example.org/v1"),
        (" https://API.example.org:8443/v1/ ", "https://api.example.org:8443/v1"),
        ("https://api.example.org", "https://api.example.org"),
        ("https://api.example.org/openai/chat/completions", "https://api.example.org/openai"),
        ("http://localhost:11434/v1", "http://localhost:11434/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_endpoints(address: str, base: str) -> None:
    assert check_endpoint(address) == base


@pytest.mark.parametrize(
    "address",
    ["", "api.example.org/v1", "ftp://localhost/v1", "file:///etc/passwd", "https://", "https://api.example.org:99999/v1",
     "https://api.example.org:x/v1", "https://api.example.org:0/v1", "http://[::1/v1", "https://a b/v1", None,
     "https://user:secret@api.example.org/v1", "https://api.example.org/v1?key=secret", "https://api.example.org/v1#x",
     "http://localhost\\@example.org/v1", "http://127.0.0.1@example.org/v1", "https://api.example.org/v1\nHost: x"],
)  # fmt: skip
def test_wrong_endpoints_are_refused_without_repeating_a_secret(address: object) -> None:
    with pytest.raises(InputError, match="endpoint") as caught:
        check_endpoint(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    ["http://api.example.org/v1", "http://localhost.example.org/v1", "http://192.168.1.5/v1", "http://0.0.0.0:80/v1",
     "http://127.0.0.1.example.org/v1"],
)  # fmt: skip
def test_unencrypted_is_for_this_computer_alone(address: str) -> None:
    with pytest.raises(InputError, match="not encrypted"):
        check_endpoint(address)


@pytest.mark.parametrize("changes", [{"count": 0}, {"count": 101}, {"count": "20"}, {"model": ""}, {"model": "a b"}])
def test_other_mistakes_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        question(**changes)
