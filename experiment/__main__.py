"""`python -m experiment`: `deploy RECORD -o FOLDER` writes a model to deploy; `stale`, `set-aside`: outdated records.

`behaviour DATASET` measures what the records' files answer, by class and on corrupted images, if that is not done yet.

`stale DATASET` lists the records whose images or networks have changed since. `set-aside DATASET [ID ...]` puts records
away, with everything made from them; without ids, all stale ones.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from experiment.aside import outdated_ids, set_ids_aside
from experiment.deploy import deploy_file
from experiment.freshness import fingerprint
from experiment.store import results_folder
from models import ModelError, allow, imported
from recipe import DataError, check_dataset
from storage import StorageError


def main() -> int:
    """Run the command; return 0 if it succeeded."""
    parser = argparse.ArgumentParser(prog="python -m experiment", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("stale", "list records whose data or networks changed"), ("set-aside", "put records away")):
        command = commands.add_parser(name, help=words)
        command.add_argument("dataset", help="cifar10 and the like, folder:PATH or parquet:PATH")
    commands.choices["set-aside"].add_argument("ids", nargs="*", help="ids of records; without any, all stale ones")
    command = commands.add_parser("behaviour", help="measure what the records' files answer, and keep it")
    command.add_argument("dataset", help="digits, cifar10 or folder:PATH")
    command.add_argument("--network", action="append", default=[], help="MODULE:FUNCTION of yours: its code runs")
    command = commands.add_parser("deploy", help="write a folder with a model and all that is needed to run it")
    command.add_argument("record", type=Path, help="results/DATASET/ID.json")
    command.add_argument("-o", "--output", type=Path, required=True, help="the folder")
    command.add_argument("--network", help="MODULE:FUNCTION, if the network is yours: its code runs")
    for name in ("behaviour", "deploy"):
        own: dict[str, Any] = {"dest": "modules", "action": "append", "default": []}
        commands.choices[name].add_argument("--import", **own, help="a module of yours, which runs")
    arguments = parser.parse_args()
    try:
        for module in getattr(arguments, "modules", ()):
            imported(module)
        if arguments.command == "deploy":
            for path in deploy_file(arguments.record, arguments.output, arguments.network):
                print(f"{path}: {path.stat().st_size:,} bytes")
            return 0
        check_dataset(arguments.dataset)
        if arguments.command == "behaviour":
            return _behaviour(arguments.dataset, arguments.network)
        if fingerprint(arguments.dataset) is None:
            print(f"The images of {arguments.dataset} are not at hand: only networks and files are compared.")
        stale = outdated_ids(arguments.dataset)
        for key, why in stale.items():
            print(f"{key}: {why}")
        if arguments.command == "set-aside":
            moved = set_ids_aside(arguments.dataset, arguments.ids or list(stale))
            print(f"Put away in {results_folder(arguments.dataset) / 'set_aside'}: {', '.join(moved) or 'nothing'}")
        elif not stale:
            print(f"All records in {results_folder(arguments.dataset)} match the data and networks at hand.")
    except (StorageError, DataError, ModelError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _behaviour(dataset: str, networks: list[str]) -> int:
    from experiment.observe import observe  # with torchvision, whose import takes a second

    allow(networks)
    missing = observe(dataset)
    print(f"Kept in {results_folder(dataset) / 'behaviour'}.")
    if missing:
        why = "the images" if fingerprint(dataset) is None else "their weights and archives"
        print(f"Not measured, since {why} are not at hand: {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
