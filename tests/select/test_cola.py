"""COLA's choice, against the same said slowly."""

import numpy as np
import pytest

from calibrant.data.select._embedding import clustered
from calibrant.data.select._reading import beginnings, pooled

from tests.select.contexts import built, check_order, context, opened, pieces

POOL = [*pieces("python_docs", 24), *pieces("python_code", 16)]


def slowly(k: int, project: int, draw: int) -> list[int]:
    """Round by round over the clusters, the larger first, what is nearest to the centre of its
    cluster.
    """
    points = pooled(opened(), beginnings(POOL, context().tokenizer, 128), "all").double().numpy()
    if project < points.shape[1]:
        points = (
            points
            @ np.random.default_rng(draw).standard_normal((points.shape[1], project))
            / project**0.5
        )
    labels, _ = clustered(points, k, draw)
    groups = []
    for label in set(labels.tolist()):
        own = [i for i in range(len(POOL)) if labels[i] == label]
        centre = sum(points[i] for i in own) / len(own)
        groups.append(
            sorted(
                own,
                key=lambda i, centre=centre: (
                    round(float(np.linalg.norm(points[i] - centre)), 9),
                    i,
                ),
            )
        )
    groups.sort(key=lambda own: (-len(own), own[0]))
    return [own[turn] for turn in range(len(POOL)) for own in groups if turn < len(own)]


@pytest.mark.parametrize(("k", "project", "draw"), [(8, 16, 1), (3, 1000, 2)])
def test_nearest_to_each_centre_first(k: int, project: int, draw: int) -> None:
    assert check_order(
        built(f"cola(source=python_docs, k={k}, project={project})"), POOL, context(draw)
    ) == slowly(k, project, draw)
