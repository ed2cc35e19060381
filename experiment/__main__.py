"""`python -m experiment`: run recipes, see what that takes, deploy a model, find outdated records.

`run RECIPES.json` makes and measures recipes, a list of what records hold under "recipe". `plan` says what is missing
of them, or of a data set's known records, and for how long that would be made. `deploy RECORD -o FOLDER` writes a model
to deploy. `behaviour DATASET` measures what the records' files answer, by class and on corrupted images, if that is not
done yet. `stale DATASET` lists the records whose images or networks have changed since. `set-aside DATASET [ID ...]`
puts records away, with everything made from them; without ids, all stale ones.
"""

import argparse
import json
import sys
from pathlib import Path

from experiment.aside import outdated_ids, set_ids_aside
from experiment.deploy import deploy_file
from experiment.freshness import fingerprint
from experiment.plan import critical_path, known_recipes, missing
from experiment.records import import_steps
from experiment.spread import attempt_all
from experiment.store import results_folder
from models import allow, imported
from recipe import CompressionError, Recipe, check_dataset, read_recipe
from storage import StorageError


def main() -> int:
    """Run the command; return 0 if it succeeded."""
    arguments = _arguments()
    commands = {
        "run": _run,
        "plan": _plan,
        "behaviour": _behaviour,
        "deploy": _deploy,
        "stale": _stale,
        "set-aside": _stale,
    }
    try:
        import_steps()
        for module in getattr(arguments, "modules", ()):
            imported(module)
        return commands[arguments.command](arguments)
    except CompressionError as error:
        print(error, file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiment", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="make and measure the recipes of a file")
    command.add_argument("recipes", type=Path, help="a JSON list of recipes")
    command.add_argument("--on", help="where they are made: processes, auto or the address of a Ray cluster ($RAY)")
    command = commands.add_parser("plan", help="say what is missing, and how long it takes")
    command.add_argument("recipes", type=Path, nargs="?", help="a JSON list; else those of all known records")
    command.add_argument("--dataset", default="digits", help="of the known records: digits, folder:PATH ...")
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
    for name in ("run", "plan", "behaviour", "deploy"):
        words = "a module of yours, which runs: of steps, networks or transformations"
        commands.choices[name].add_argument("--import", dest="modules", action="append", default=[], help=words)
    return parser.parse_args()


def _recipes(path: Path) -> list[Recipe]:
    try:
        written = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not a readable JSON file ({error}): give a list of recipes") from None
    return [read_recipe(one) for one in (written if isinstance(written, list) else [written])]


def _run(arguments: argparse.Namespace) -> int:
    recipes = _recipes(arguments.recipes)
    records, failures = attempt_all(recipes, arguments.on)
    for record in records:
        print(f"{results_folder(record['dataset']) / record['id']}.json: {record['label']}, {record['accuracy']:.2%}")
    for recipe in {recipe.id: recipe for recipe in recipes if recipe.id in failures}.values():
        print(f"failed: {recipe.label} ({recipe.id}): {failures[recipe.id]}", file=sys.stderr)
    return 1 if failures else 0


def _plan(arguments: argparse.Namespace) -> int:
    check_dataset(arguments.dataset)
    recipes = known_recipes(arguments.dataset) if arguments.recipes is None else _recipes(arguments.recipes)
    jobs = missing(recipes)
    for job in jobs.values():
        print(f"{job.key[:12]}  {_time(job.seconds)}  {job.words}")
    path = critical_path(jobs)
    print(f"{len(jobs)} steps are missing, of {len(recipes)} recipes" + (":" if jobs else "."))
    if jobs:
        print(f"{_time(sum(job.seconds for job in jobs.values()))} in all, as recorded or estimated from such records")
        print(f"{_time(sum(job.seconds for job in path))} on the critical path: {'; '.join(job.words for job in path)}")
    return 0


def _time(seconds: float) -> str:
    return f"{seconds // 3600:3.0f} h {seconds % 3600 // 60:02.0f} min {seconds % 60:02.0f} s"


def _deploy(arguments: argparse.Namespace) -> int:
    for path in deploy_file(arguments.record, arguments.output, arguments.network):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


def _stale(arguments: argparse.Namespace) -> int:
    check_dataset(arguments.dataset)
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
    return 0


def _behaviour(arguments: argparse.Namespace) -> int:
    from experiment.observe import observe  # with torchvision, whose import takes a second

    dataset = arguments.dataset
    check_dataset(dataset)
    allow(arguments.network)
    missing = observe(dataset)
    print(f"Kept in {results_folder(dataset) / 'behaviour'}.")
    if missing:
        why = "the images" if fingerprint(dataset) is None else "their weights and archives"
        print(f"Not measured, since {why} are not at hand: {', '.join(missing)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
