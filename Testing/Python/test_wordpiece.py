"""BiomedBERT's tokenizer from either of its files, against transformers' own."""

from __future__ import annotations

import pytest
from full_models import toy_tokenizer, toy_vocabulary

from MedCLIPSAMLib.clip.wordpiece import WordPiece
from MedCLIPSAMLib.errors import InputError

TEXTS = ["A medical breast ultrasound image showing a tumour, with a dark region.", "brain MRI", "chest x-ray &amp; CT"]


def test_json_and_vocabulary_agree(tmp_path):
    toy_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "vocab.txt").write_text("\n".join(toy_vocabulary()) + "\n", encoding="utf-8")
    ours = [WordPiece(tmp_path / name, 256)(TEXTS) for name in ("tokenizer.json", "vocab.txt")]
    assert ours[0] == ours[1]
    assert ours[0][1][0] == 2 and ours[0][1][-1] == 3 and 0 not in ours[0][1]


def test_the_real_vocabulary(data_dir):
    folder = data_dir / "pubmedbert_vocab"
    from transformers import BertTokenizerFast

    reference = BertTokenizerFast.from_pretrained(folder)
    expected = [reference(text)["input_ids"] for text in TEXTS]
    assert WordPiece(folder / "tokenizer.json", 256)(TEXTS) == expected
    assert WordPiece(folder / "vocab.txt", 256)(TEXTS) == expected


def test_long_texts_are_cut_with_a_warning(tmp_path, caplog):
    toy_tokenizer(tmp_path / "tokenizer.json")
    (row,) = WordPiece(tmp_path / "tokenizer.json", 10)(["brain " * 40])
    assert len(row) == 10 and row[-1] == 3
    assert "cut to 10 tokens" in caplog.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[PAD]\nonly\nwords\n", "vocab.txt"),
        (b"brain\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "PAD"),
        (b"\xff\xfe\x00", "vocab.txt"),
    ],
)
def test_other_vocabularies(tmp_path, content, said):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        WordPiece(tmp_path / "vocab.txt", 256)
