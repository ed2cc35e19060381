"""The networks, by name: `build("resnet18", shape=(3, 32, 32), classes=10)`."""

from models.channels import channel_table
from models.errors import ModelError
from models.registry import ARCHITECTURES, build, check_model, check_network, combine, rebuild
from models.resnet import ResNet
from models.spec import Spec, set_spec, spec_of
from models.structure import on_paper, structure

__all__ = [
    "ARCHITECTURES",
    "ModelError",
    "ResNet",
    "Spec",
    "build",
    "channel_table",
    "check_model",
    "check_network",
    "combine",
    "on_paper",
    "rebuild",
    "set_spec",
    "spec_of",
    "structure",
]
