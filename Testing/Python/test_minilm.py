"""Sentence embeddings against a plain BERT forward pass on the checkpoint's own tensors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from MedCLIPSAMLib.clip.minilm import HEADS, LAYERS, MAXIMUM_TOKENS, MiniLM
from MedCLIPSAMLib.errors import MissingWeightsError
from MedCLIPSAMLib.weights import verified

SENTENCES = [
    "lungs",
    "malignant breast tumour",
    "An axial chest CT slice showing a spiculated 12-mm nodule, suspicious for bronchogenic carcinoma.",
    "Übergröße, naïve; 脳腫瘍 and an emoji 🩻",
    "a photograph of a cat sleeping on a warm windowsill",
]
CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def files() -> tuple[str, str]:
    try:
        return str(verified("minilm-l6-v2")), str(verified("minilm-l6-v2-tokenizer"))
    except MissingWeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def model(files) -> MiniLM:
    return MiniLM(*files)


class PlainBert:
    """Devlin et al., "BERT", NAACL 2019, written out in double precision; one text at a time, so without a mask."""

    def __init__(self, checkpoint: str, tokenizer: str):
        self.state = {key: value.double() for key, value in load_file(checkpoint).items()}
        self.tokenizer = Tokenizer.from_file(tokenizer)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def normalise(self, x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def layer(self, x: torch.Tensor, name: str) -> torch.Tensor:
        heads = []
        query, key, value = (self.linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        width = x.shape[-1] // HEADS
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            weights = torch.softmax(query[:, part] @ key[:, part].T / math.sqrt(width), dim=-1)
            heads.append(weights @ value[:, part])
        attended = self.linear(torch.cat(heads, dim=-1), f"{name}.attention.output.dense")
        x = self.normalise(x + attended, f"{name}.attention.output.LayerNorm")
        inner = self.linear(x, f"{name}.intermediate.dense")
        inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
        return self.normalise(x + self.linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")

    def encode(self, text: str) -> np.ndarray:
        ids = self.tokenizer.encode(text).ids
        if len(ids) > MAXIMUM_TOKENS:
            ids = [*ids[: MAXIMUM_TOKENS - 1], SEP]
        assert ids[0] == CLS and ids[-1] == SEP
        x = self.state["embeddings.word_embeddings.weight"][ids]
        x = x + self.state["embeddings.position_embeddings.weight"][: len(ids)]
        x = self.normalise(x + self.state["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for number in range(LAYERS):
            x = self.layer(x, f"encoder.layer.{number}")
        mean = x.mean(0)
        return (mean / mean.norm()).numpy()


@pytest.fixture(scope="module")
def reference(files) -> PlainBert:
    return PlainBert(*files)


@pytest.mark.parametrize("text", SENTENCES)
def test_equals_bert_written_out(model, reference, text):
    np.testing.assert_allclose(model.encode([text])[0], reference.encode(text), rtol=0, atol=1e-5)


def test_vectors_are_unit_vectors(model):
    vectors = model.encode(SENTENCES)
    assert vectors.shape == (len(SENTENCES), 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_padding_in_a_batch_changes_nothing(model):
    together = model.encode([*SENTENCES, "word " * 300])
    for text, vector in zip(SENTENCES, together, strict=False):
        np.testing.assert_allclose(model.encode([text])[0], vector, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.encode(SENTENCES[::-1])[::-1], together[: len(SENTENCES)], rtol=0, atol=1e-6)


def test_many_texts_come_back_in_their_order(model):
    """They are encoded by length, some at a time."""
    many = [f"{'dark ' * (number * 7 % 31)}spot {number}" for number in range(150)]
    alone = np.concatenate([model.encode([text]) for text in many])
    np.testing.assert_allclose(model.encode(many), alone, rtol=0, atol=1e-6)


def test_equal_texts_give_bit_equal_vectors(model):
    np.testing.assert_array_equal(model.encode(SENTENCES), model.encode(SENTENCES))


def test_a_very_long_text_is_cut_off(model, reference):
    long = "spiculated mass with calcifications in the upper outer quadrant " * 80
    vector = model.encode([long])[0]
    np.testing.assert_allclose(vector, reference.encode(long), rtol=0, atol=1e-5)
    # what stands behind the limit is not read
    np.testing.assert_array_equal(model.encode([long + " and a cat"])[0], vector)


def test_nearness_follows_the_meaning(model):
    tumour, mass, cat = model.encode(["brain tumor", "a mass in the brain", "a cat on a sofa"])
    assert tumour @ mass > 0.5 > tumour @ cat + 0.2
