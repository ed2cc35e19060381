"""`python -m experiment set-aside DATASET [ID ...]`: put records and all that was made from them away.

Without ids those that are not of the images or networks at hand, which `stale` lists.
"""

import argparse
import sys

from experiment.aside import outdated_ids, set_ids_aside
from experiment.freshness import fingerprint
from experiment.store import results_folder
from recipe import DataError, check_dataset
from storage import StorageError


def main() -> int:
    """The command; 0 if it could be done."""
    parser = argparse.ArgumentParser(prog="python -m experiment", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("stale", "list records of other images or networks"), ("set-aside", "put records away")):
        command = commands.add_parser(name, help=words)
        command.add_argument("dataset", help="digits, cifar10 or folder:PATH")
    commands.choices["set-aside"].add_argument("ids", nargs="*", help="of the records; none for the stale ones")
    arguments = parser.parse_args()
    try:
        check_dataset(arguments.dataset)
        if fingerprint(arguments.dataset) is None:
            print(f"The images of {arguments.dataset} are not at hand: only networks and files are compared.")
        stale = outdated_ids(arguments.dataset)
        for key, why in stale.items():
            print(f"{key}: {why}")
        if arguments.command == "set-aside":
            gone = set_ids_aside(arguments.dataset, arguments.ids or list(stale))
            print(f"Put away in set_aside, beside {results_folder(arguments.dataset)}: {', '.join(gone) or 'nothing'}")
        elif not stale:
            print(f"No record in {results_folder(arguments.dataset)} is of anything else than what is at hand.")
    except (StorageError, DataError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
