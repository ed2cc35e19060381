"""Errors of models on the test images: how those of ensemble members differ. Nothing is selected by them."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from data import load, normalize
from experiment import kept_table, make
from recipe import Recipe
from training import scaled_for


def diversity(members: Mapping[str, Recipe]) -> pd.DataFrame:
    """Return how the errors of each pair differ on the test images: columns one, other, disagreement, correlation.

    Disagreement is the share of images for which their predictions differ. Correlation is that of their errors, None
    if one of them is wrong on no image or on all.
    """
    dataset = next(iter(members.values())).dataset

    def rows() -> list[dict]:
        labels = load(dataset).test.labels.numpy()
        answers = {name: _answers(member) for name, member in members.items()}
        wrong = {name: answer != labels for name, answer in answers.items()}
        return [
            {
                "one": one,
                "other": other,
                "disagreement": float((answers[one] != answers[other]).mean()),
                "correlation": float(np.corrcoef(wrong[one], wrong[other])[0, 1])
                if 0 < wrong[one].mean() < 1 and 0 < wrong[other].mean() < 1
                else None,
            }
            for one, other in combinations(members, 2)
        ]

    return kept_table("diversity", dataset, rows, {"models": _ids(members)})


def confusions(recipes: Mapping[str, Recipe]) -> pd.DataFrame:
    """Return the confusion counts of each model on the test images: columns model, actual, answer, images."""
    first = next(iter(recipes.values()))

    def rows() -> list[dict]:
        dataset = load(first.dataset)
        actual, names = dataset.test.labels.numpy(), dataset.classes
        found = []
        for model, recipe in recipes.items():
            counts = np.zeros((len(names), len(names)), dtype=int)
            np.add.at(counts, (actual, _answers(recipe)), 1)
            found += [
                {"model": model, "actual": names[row], "answer": names[column], "images": int(counts[row, column])}
                for row, column in np.ndindex(counts.shape)
            ]
        return found

    return kept_table("confusions", first.dataset, rows, {"models": _ids(recipes)})


def changed_errors(confusion: pd.DataFrame, one: str, other: str, most: int = 3) -> pd.DataFrame:
    """Compare the errors of two models in a table of `confusions`.

    The first row counts all errors. Then follow the pairs of classes that change the most: up to `most` with fewer
    errors of `other`, and as many with more. Columns: actual, answer, the images of each model, and `fewer`, by how
    many `other` has fewer.
    """
    wrong = confusion[confusion["actual"] != confusion["answer"]]
    table = wrong.pivot(index=["actual", "answer"], columns="model", values="images")[[one, other]].reset_index()
    table = table.assign(fewer=table[one] - table[other]).sort_values("fewer", ascending=False, kind="stable")
    better, worse = table[table["fewer"] > 0].head(most), table[table["fewer"] < 0].tail(most)
    everything = {"actual": "any", "answer": "wrong"} | table[[one, other, "fewer"]].sum().to_dict()
    return pd.concat([pd.DataFrame([everything]), better, worse], ignore_index=True).rename_axis(None, axis="columns")


@torch.no_grad()
def _answers(recipe: Recipe) -> np.ndarray:
    """Return the classes that a model predicts for the test images."""
    model = make(recipe)
    dataset = scaled_for(model, load(recipe.dataset))
    found = [model(normalize(images, dataset)).argmax(1) for images, _ in dataset.test.parts(500)]
    return torch.cat(found).numpy()


def _ids(recipes: Mapping[str, Recipe]) -> dict[str, str]:
    return {name: recipe.id for name, recipe in recipes.items()}
