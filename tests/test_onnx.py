"""The ONNX file: what the model computes, for any batch, or it is refused."""

import onnx
import pytest
import torch

import storage.onnx_file
from models import ResNet
from storage import StorageError, export_onnx, open_onnx, run_onnx


def network(seed: int) -> ResNet:
    torch.manual_seed(seed)
    model = ResNet((4, 8), (1, 1), 1, 10).eval()
    model.spec = {"architecture": "tiny", "shape": [1, 8, 8], "classes": 10}
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, file = network(0), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, file, {"classes": ["zero", "one"]})
    return model, file


@pytest.mark.parametrize("batch", [1, 2, 37])
def test_logits_are_the_models_for_any_batch(exported, batch):
    model, file = exported
    images = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run_onnx(open_onnx(file), images.numpy())), model(images))


def test_metadata_and_a_single_file(exported):
    _, file = exported
    properties = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert properties["classes"] == '["zero", "one"]' and '"architecture": "tiny"' in properties["spec"]
    assert list(file.parent.iterdir()) == [file]


def test_a_file_of_another_model_is_refused_and_not_kept(tmp_path, monkeypatch):
    check = storage.onnx_file._check
    monkeypatch.setattr(storage.onnx_file, "_check", lambda model, *paths: check(network(1), *paths))
    with pytest.raises(StorageError, match="other logits"):
        export_onnx(network(0), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_truncated_and_missing_files(exported, tmp_path):
    (tmp_path / "half.onnx").write_bytes(exported[1].read_bytes()[:3000])
    for name in ("half.onnx", "none.onnx"):
        with pytest.raises(StorageError, match=name):
            open_onnx(tmp_path / name)
