"""The networks, by name: `build("resnet18", shape=(3, 32, 32), classes=10)`."""

import models.quantized  # noqa: F401 (registers its transformation)
from models.channels import channel_table
from models.elsewhere import allow, imported, is_allowed, named
from models.errors import ModelError
from models.registry import ARCHITECTURES, build, check_model, check_network, combine, rebuild
from models.resnet import ResNet
from models.spec import TRANSFORMATIONS, Spec, done_to, set_spec, spec_of, transformation, with_done
from models.structure import on_paper, structure

__all__ = [
    "ARCHITECTURES",
    "TRANSFORMATIONS",
    "ModelError",
    "ResNet",
    "Spec",
    "allow",
    "build",
    "channel_table",
    "check_model",
    "check_network",
    "combine",
    "done_to",
    "imported",
    "is_allowed",
    "named",
    "on_paper",
    "rebuild",
    "set_spec",
    "spec_of",
    "structure",
    "transformation",
    "with_done",
]
