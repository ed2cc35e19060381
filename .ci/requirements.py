"""Write requirements.txt, requirements-gpu.txt and requirements.lock: `make requirements`.

The requirements files repeat the lists of pyproject.toml. The lock holds the versions that are installed here, of all
that those lists need, directly or not; so it is written after the tests have passed with these versions.
"""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = "# Written by `make requirements` from pyproject.toml: change it there."


def main() -> None:
    """Write the three files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed, extras = project["dependencies"], project["optional-dependencies"]
    _write("requirements.txt", WRITTEN, *needed, "# Tests and checks.", *extras["dev"])
    _write(
        "requirements-gpu.txt", WRITTEN, '# Only for an NVIDIA GPU: see "CUDA kernels" in the README.', *extras["gpu"]
    )
    versions = _installed([*needed, *extras["dev"]])
    _write(
        "requirements.lock",
        "# The versions that the tests passed with. Written by `make requirements` from what is installed.",
        "# Constraints for pip: a package that a platform does not need, such as CUDA's, is not installed there.",
        *(f"{name}=={version}" for name, version in sorted(versions.items())),
    )


def _installed(requirements: list[str]) -> dict[str, str]:
    """Version by name of all installed packages that these requirements lead to."""
    versions: dict[str, str] = {}
    waiting = [Requirement(text) for text in requirements]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, extras := frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{name} is not installed: run `make setup` first") from error
        versions[name] = package.version.partition("+")[0]  # torch's CPU build is the same version
        for text in package.requires or ():
            further = Requirement(text)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append(further)
    return versions


def _write(name: str, *lines: str) -> None:
    (ROOT / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
