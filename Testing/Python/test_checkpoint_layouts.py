"""Layouts of BiomedCLIP's checkpoints told apart and converted bit by bit; nothing in a file is ever run."""

from __future__ import annotations

import os
import pickle
import traceback
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from full_models import official_biomedclip
from safetensors.torch import save_file
from torch import Tensor, nn

from MedCLIPSAMLib.clip.biomedclip import load_strictly
from MedCLIPSAMLib.clip.checkpoint_layouts import read_checkpoint, to_hugging_face, to_open_clip
from MedCLIPSAMLib.clip.registry import find_checkpoint
from MedCLIPSAMLib.clip.torchscript_archive import is_torchscript, read_torchscript
from MedCLIPSAMLib.errors import InputError


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The names of the real model, with small tensors that are all different."""
    generator = torch.Generator().manual_seed(0)
    result = {}
    for name, like in official_biomedclip().state_dict().items():
        shape = [2] * like.ndim
        if name.endswith(("cls_token", "pos_embed")):
            shape = [1, 1, 2] if name.endswith("cls_token") else [1, 5, 2]
        elif ".qkv." in name:
            shape[0] = 6
        result[name] = torch.randn(shape, generator=generator)
    return result


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


class TestLayouts:
    def test_there_and_back(self, state):
        converted = to_hugging_face(state)
        assert (len(state), len(converted)) == (351, 399)
        assert converted["vision_model.embeddings.class_embedding"].shape == (2,)
        assert converted["vision_model.embeddings.position_embedding.weight"].shape == (5, 2)
        query = converted["vision_model.encoder.layers.11.self_attn.q_proj.weight"]
        assert torch.equal(query, state["visual.trunk.blocks.11.attn.qkv.weight"][:2])
        found, layout = to_open_clip(converted)
        assert layout == "Hugging Face"
        assert_equal(found, state)

    def test_open_clip_is_left_as_it_is(self, state):
        found, layout = to_open_clip(state)
        assert layout == "open_clip"
        assert_equal(found, state)

    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "module._orig_mod."])
    def test_training_checkpoints(self, state, prefix):
        renamed = {prefix + name: value for name, value in state.items()}
        found, layout = to_open_clip({"epoch": 1, "state_dict": renamed, "optimizer": {"state": {}}})
        assert layout == "training checkpoint"
        assert_equal(found, state)

    def test_a_prefix_without_an_entry_around_it(self, state):
        found, layout = to_open_clip({f"module.{name}": value for name, value in state.items()})
        assert layout == "training checkpoint"
        assert_equal(found, state)

    def test_buffers_of_older_libraries_are_dropped(self, state):
        found, _ = to_open_clip({**state, "text.transformer.embeddings.position_ids": torch.arange(512)[None]})
        assert_equal(found, state)
        old = {**to_hugging_face(state), "vision_model.embeddings.position_ids": torch.arange(197)[None]}
        assert_equal(to_open_clip(old)[0], state)

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            ({}, "0 entries"),
            ({"visual.conv1.weight": torch.zeros(1), "ln_final.bias": torch.zeros(1)}, "visual.conv1.weight"),
            ({"image_encoder.patch_embed.proj.weight": torch.zeros(1)}, "image_encoder"),
            ({"state_dict": {}}, "0 entries"),
        ],
    )
    def test_none_of_them(self, content, found):
        with pytest.raises(InputError, match=found) as caught:
            to_open_clip(content)
        assert "vision_model" in str(caught.value)

    def test_another_model_in_the_hugging_face_layout(self, state):
        other = {**to_hugging_face(state), "vision_model.pre_layrnorm.weight": torch.zeros(2)}
        with pytest.raises(InputError, match="pre_layrnorm"):
            to_open_clip(other)

    def test_a_query_without_its_key(self, state):
        broken = to_hugging_face(state)
        del broken["vision_model.encoder.layers.3.self_attn.k_proj.weight"]
        with pytest.raises(InputError, match=r"layers\.3\.self_attn\.[qv]_proj\.weight"):
            to_open_clip(broken)

    def test_only_biomedclip_is_exported(self, state):
        with pytest.raises(InputError, match=r"visual\.trunk\.fc_norm\.weight"):
            to_hugging_face({**state, "visual.trunk.fc_norm.weight": torch.zeros(2)})


class TestLoading:
    def test_missing_superfluous_and_misshapen(self):
        layer = nn.Linear(2, 3)
        good = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}
        for bad, said in (
            ({"weight": good["weight"]}, "bias"),
            ({**good, "extra": good["bias"]}, "extra"),
            ({**good, "weight": torch.ones(2, 2)}, "weight"),
            ({**good, "weight": "text"}, "not a tensor"),
        ):
            with pytest.raises(InputError, match=said):
                load_strictly(layer, bad, "a layer")
        load_strictly(layer, {name: value.half() for name, value in good.items()}, "a layer")
        assert layer.weight.dtype == torch.float32 and torch.equal(layer.weight, good["weight"])


class Trap:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refusal(path: Path) -> str:
    """The message, of which nothing may be torch's own, nor anything be warned of or shown in the traceback."""
    with warnings.catch_warnings(), pytest.raises(InputError) as caught:
        warnings.simplefilter("error")
        read_checkpoint(path)
    shown = "".join(traceback.format_exception(caught.value))
    for advice in ("weights_only` set", "arbitrary code", "miniz", "Re-running"):
        assert advice not in shown
    return str(caught.value)


class TestReading:
    @pytest.mark.parametrize("kind", ["zip", "old", "protocol 4", "bare protocol 4", "TorchScript"])
    def test_code_in_a_checkpoint_is_not_run(self, tmp_path, kind):
        path = tmp_path / "pytorch_model.bin"
        content = {"weight": Trap(tmp_path / "sprung")}
        if kind == "bare protocol 4":
            path.write_bytes(pickle.dumps(content, protocol=4))
        elif kind == "TorchScript":
            torch.jit.script(nn.Linear(2, 2)).save(str(path))
        else:
            torch.save(
                content,
                path,
                _use_new_zipfile_serialization=kind != "old",
                pickle_protocol=4 if kind == "protocol 4" else 2,
            )
        told = refusal(path)
        assert "holds more than numbers" in told and "it is not loaded" in told
        assert "named pytorch_model.safetensors" in told and "MEDCLIPSAM_OWN_WEIGHTS" in told
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("name", ["a.bin", "a.safetensors"])
    @pytest.mark.parametrize("content", [b"PK\x03\x04 half a file", b"<html>Not found</html>", bytes(2000)])
    def test_damaged(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        assert f"cannot be read as a checkpoint: it is damaged or incomplete ({len(content)} bytes)" in refusal(
            tmp_path / name
        )

    def test_empty(self, tmp_path):
        (tmp_path / "a.bin").touch()
        assert "it is empty. Get the file again." in refusal(tmp_path / "a.bin")

    def test_no_file(self, tmp_path):
        assert "No such file" in refusal(tmp_path / "a.bin")

    @pytest.mark.parametrize("name", ["zip.bin", "old.bin", "a.safetensors"])
    def test_truncated(self, tmp_path, name):
        path = tmp_path / name
        if path.suffix == ".safetensors":
            save_file({"weight": torch.zeros(1000)}, path)
        else:
            torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=name == "zip.bin")
        whole = path.read_bytes()
        for size in (4, 10, 60, 100, 2000, len(whole) - 5):
            path.write_bytes(whole[:size])
            assert f"damaged or incomplete ({size} bytes)" in refusal(path)

    def test_safetensors_by_another_name(self, tmp_path):
        save_file({"weight": torch.arange(3.0)}, tmp_path / "model.pth")
        assert torch.equal(read_checkpoint(tmp_path / "model.pth")["weight"], torch.arange(3.0))

    def test_a_bare_tensor(self, tmp_path):
        torch.save(torch.zeros(3), tmp_path / "a.bin")
        with pytest.raises(InputError, match="Tensor"):
            read_checkpoint(tmp_path / "a.bin")


class TestFinding:
    def test_a_usual_name_wins(self, tmp_path):
        for name in ("epoch_1.pt", "epoch_2.pt", "open_clip_pytorch_model.bin", "config.json"):
            (tmp_path / name).touch()
        assert find_checkpoint(tmp_path).name == "open_clip_pytorch_model.bin"
        assert find_checkpoint(tmp_path / "epoch_1.pt").name == "epoch_1.pt"

    def test_several_or_none(self, tmp_path):
        with pytest.raises(InputError, match="found: none"):
            find_checkpoint(tmp_path)
        for name in ("epoch_1.pt", "epoch_2.pt"):
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=r"epoch_1.pt, epoch_2.pt"):
            find_checkpoint(tmp_path)
        with pytest.raises(InputError, match="does not exist"):
            find_checkpoint(tmp_path / "no")


class Scripted(nn.Module):
    """Half and single precision, a view, a shared and an empty tensor, lists, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.attention = nn.MultiheadAttention(8, 2)
        joint = torch.randn(4, 6)
        self.transposed = nn.Parameter(joint.t())
        self.tied = nn.Parameter(self.transposed.data)
        self.low = nn.Parameter(torch.randn(3).half())
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("size", torch.tensor(224))
        self.sizes = [1, 2, 3]

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) * self.sizes[0]


class TestTorchScript:
    @pytest.fixture
    def archive(self, tmp_path) -> Path:
        torch.manual_seed(0)
        torch.jit.script(Scripted()).save(str(tmp_path / "model.pt"))
        return tmp_path / "model.pt"

    def test_same_tensors_as_torch_finds(self, archive):
        assert is_torchscript(archive)
        expected = torch.jit.load(str(archive)).state_dict()
        found = read_torchscript(archive)
        assert len(expected) > 10
        assert_equal({name: found[name] for name in expected}, dict(expected))
        assert all(found[name].dtype == value.dtype for name, value in expected.items())

    def test_other_files_are_none(self, tmp_path):
        torch.save({}, tmp_path / "a.pt")
        (tmp_path / "b.pt").write_bytes(b"no archive")
        assert not is_torchscript(tmp_path / "a.pt") and not is_torchscript(tmp_path / "b.pt")

    @staticmethod
    def rewrite(source: Path, target: Path, change) -> Path:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            for name in old.namelist():
                content = change(name, old.read(name))
                if content is not None:
                    new.writestr(name, content)
        return target

    def test_code_in_its_pickle_is_not_run(self, archive, tmp_path):
        trap = pickle.dumps({"visual": Trap(tmp_path / "sprung")})
        path = self.rewrite(archive, tmp_path / "t.pt", lambda name, old: trap if name.endswith("/data.pkl") else old)
        with pytest.raises(InputError, match=r"mkdir, which is not allowed"):
            read_torchscript(path)
        assert not (tmp_path / "sprung").exists()

    @pytest.mark.parametrize("fault", ["lost", "short"])
    def test_a_tensor_that_is_not_whole(self, archive, tmp_path, fault):
        def change(name: str, old: bytes) -> bytes | None:
            if not name.endswith("/data/0"):
                return old
            return None if fault == "lost" else old[: len(old) // 8 * 4]

        with pytest.raises(InputError, match="damaged or incomplete"):
            read_torchscript(self.rewrite(archive, tmp_path / "t.pt", change))

    def test_a_shape_beyond_its_storage(self, archive, tmp_path):
        """A forged shape must not read memory that is not the tensor's."""

        def change(name: str, old: bytes) -> bytes:
            if not name.endswith("/data.pkl"):
                return old
            shape = b"(K\x06K\x04t"  # 6 x 4, as torch writes it
            assert shape in old
            return old.replace(shape, b"(K\x06K\xc8t")

        with pytest.raises(InputError, match="damaged or incomplete"):
            read_torchscript(self.rewrite(archive, tmp_path / "t.pt", change))

    def test_a_pickle_of_something_else(self, archive, tmp_path):
        other = pickle.dumps({})
        path = self.rewrite(archive, tmp_path / "t.pt", lambda name, old: other if name.endswith("/data.pkl") else old)
        with pytest.raises(InputError, match="damaged or incomplete"):
            read_torchscript(path)
