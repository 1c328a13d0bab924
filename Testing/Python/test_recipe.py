"""Settings as a user gives them: read, checked, and refused with what is possible."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from MedCLIPSAMLib.cli import app
from MedCLIPSAMLib.errors import InputError
from MedCLIPSAMLib.file_io import read_image
from MedCLIPSAMLib.recipe import load_recipe


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("visual_prompt", "points", "points"),
        ("threshold", "0.4", 0.4),
        ("threshold", "kmeans", "kmeans"),
        ("threshold", 0, 0.0),
        ("samples", "3", 3),
        ("gate", "false", False),
        ("scales", "[1, 0.5]", (1, 0.5)),
        ("maximum_components", "null", None),
        ("maximum_components", "2", 2),
        ("candidates", "staple", "staple"),
    ],
)
def test_a_setting_is_read(name, given, read):
    assert getattr(load_recipe("lite").with_settings({name: given}), name) == read


def test_inner_settings_that_are_not_given_stay():
    before = load_recipe("biomedclip").m2ib
    after = load_recipe("biomedclip").with_settings({"m2ib": '{"beta": 0.3, "map": "lambda"}'}).m2ib
    assert after == {**before, "beta": 0.3, "map": "lambda"}
    dotted = {"m2ib.beta": "0.3", "m2ib.map": "lambda"}
    assert load_recipe("biomedclip").with_settings(dotted).m2ib == after


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("threshold", "x", "threshold is 'x'; pass 'otsu' or 'kmeans' or 'crf' or a number"),
        ("samples", "1.5", "samples is 1.5; pass a whole number"),
        ("samples", "true", "samples is True; pass a whole number"),
        ("gate", "1", "gate is 1; pass true or false"),
        ("candidates", "all", "'single' or 'best' or 'average'"),
        ("m2ib", "x", "pass an object"),
        ("m2ib", '{"gamma": 1}', "m2ib has no 'gamma'; it has: layer, beta"),
        ("m2ib.layer", "deep", "m2ib.layer is 'deep'; pass a whole number from 0"),
        ("m2ib.layer", "-1", "m2ib.layer is -1"),
        ("scales", "[]", r"scales is \(\); pass a list of numbers from 0.1 to 1"),
        ("scales", "[0.001]", "scales is .* from 0.1 to 1"),  # would ask for an image of a million pixels a side
        ("samples", "0", "samples is 0; pass a whole number from 1"),
        ("threshold", "2", "threshold is 2.0; pass a number from 0 to below 1"),
        ("maximum_components", "0", "or null for all"),
        ("box_padding", "-5", "box_padding is -5"),
        ("saliency", "nope", "'patch_similarity' or 'm2ib'"),
        ("segmenter", "medsam", "has no setting 'segmenter'"),  # it is part of the engine's name
        ("colour", "red", "has no setting 'colour'; it has: .*visual_prompt"),
    ],
)
def test_what_cannot_be_a_setting_is_refused(name, given, message):
    with pytest.raises(InputError, match=message):
        load_recipe("lite").with_settings({name: given})


def test_the_command_line_replaces_settings(lite, tmp_path):
    arguments = ["segment", "--sample", "breast-ultrasound", "--output", str(tmp_path), "--device", "cpu"]
    outcome = CliRunner().invoke(app, [*arguments, "--set", "samples=1", "--set", "threshold=0.75"])
    assert outcome.exit_code == 0, outcome.output
    report = json.loads((tmp_path / "result.json").read_text())
    assert report["recipe"]["samples"] == 1 and report["threshold"] == 0.75
    saliency = read_image(tmp_path / "saliency.nrrd").array.squeeze()
    coarse = read_image(tmp_path / "coarse.png").array > 0
    assert coarse.any() and np.all(saliency[coarse] > 0.75)


@pytest.mark.parametrize("text", ["samples", "=3", "samples=many"])
def test_the_command_line_refuses_in_one_line(text, tmp_path):
    outcome = CliRunner().invoke(
        app, ["segment", "--sample", "breast-ultrasound", "--output", str(tmp_path / "out"), "--set", text]
    )
    assert outcome.exit_code == 2 and outcome.stderr.count("\n") == 1 and "Error: " in outcome.stderr
    assert not (tmp_path / "out").exists()
