"""MELO's clusters and WISE's merging and loss against numbers of the authors' code."""

import pytest
import torch

from lightning_edit.editors import Margins
from lightning_edit.editors.clusters import FORGOTTEN, Clusters
from lightning_edit.editors.side_memory import activation_gap
from lightning_edit.editors.side_memory_training import margin_loss
from lightning_edit.edits import Memory
from lightning_edit.functional.ties import ties_merge
from lightning_edit.records import EditRequest

KEYS = [
    [0.0, 0.0], [5.0, 0.0], [1.5, 0.0], [0.5, 0.5], [0.0, 2.25], [5.0, 1.75], [7.25, 0.0], [5.5, 1.0], [7.5, -0.25],
    [-10.0, -10.0], [-10.0, -9.0], [-9.5, -9.5],
]  # fmt: skip
TARGETS = ["1", "2", "1", "1", "3", "2", "4", "5", "4", "6", "6", "7"]
LEFT, MIDDLE, RIGHT, FAR = (0.666667, 0.166667, 1.0), (5.0, 0.875, 1.0), (7.375, -0.125, 1.0), (-10.0, -9.5, 1.0)
ABOVE, SPLIT, LONE = (0.0, 2.25, 1.0), (5.5, 1.0, 0.257704), (7.25, 0.0, 1.0)
CLUSTERS = {
    3: {0: (0.75, 0.0, 1.0), 1: (5.0, 0.0, 1.0), 2: (0.75, 0.0, 1.0)},
    4: {0: LEFT, 1: (5.0, 0.0, 1.0), 2: LEFT, 3: LEFT},
    7: {0: LEFT, 1: MIDDLE, 2: LEFT, 3: LEFT, 4: ABOVE, 5: MIDDLE, 6: LONE},
    8: {0: LEFT, 2: LEFT, 3: LEFT, 4: ABOVE, 6: LONE, 7: SPLIT},
    9: {0: LEFT, 2: LEFT, 3: LEFT, 4: ABOVE, 6: RIGHT, 7: SPLIT, 8: RIGHT},
    11: {0: LEFT, 2: LEFT, 3: LEFT, 4: ABOVE, 6: RIGHT, 7: SPLIT, 8: RIGHT, 9: FAR, 10: FAR},
    12: {0: LEFT, 2: LEFT, 3: LEFT, 4: ABOVE, 6: RIGHT, 7: SPLIT, 8: RIGHT, 11: (-9.5, -9.5, 0.25001)},
}
"""Number of keys added to, for each key that is still in a cluster, the centre and the radius of that cluster.

From ECNU-ICALK/MELO at ed097eb: GraceLinear with the identity as its weight and an initial radius of 1, given KEYS and
TARGETS one by one.
"""


@pytest.mark.parametrize("count", CLUSTERS)
def test_clusters_equal_those_of_melos_code(count):
    router, memory = Clusters("site", 1.0), None
    for key, target in zip(KEYS[:count], TARGETS[:count], strict=True):
        point = torch.tensor([key])
        request = EditRequest(f"Question {key}", target, id=str(key))
        item = Memory(((request,),), {"key": point, "centre": point, "radius": torch.tensor([1.0])})
        memory = router.join(memory if memory is not None else item.select([]), item)
    centres, radii = memory.tensors["centre"].tolist(), memory.tensors["radius"].tolist()
    actual = {number: (*centres[number], radii[number]) for number in range(count) if radii[number] != FORGOTTEN}
    assert actual.keys() == CLUSTERS[count].keys()
    for number, expected in CLUSTERS[count].items():
        assert actual[number] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.53, [[-0.5, -1.125, -1.5], [1.5, -0.75, 0.0]]),
        (0.84, [[0.375, -1.125, -1.5], [1.5, -0.5, -0.375]]),
        (1.0, [[0.375, -1.125, -1.5], [1.5, -0.5, -0.375]]),
    ],
)
def test_ties_merging_equals_that_of_wises_code(density, expected):
    """zjunlp/EasyEdit at 14cea82: GTA("magnitude", "sum", normalize=True) with weights of one on a base of zeros."""
    changes = torch.tensor(
        [
            [[0.5, -1.25, 0.0], [2.0, -0.75, 0.25]],
            [[-0.5, -1.0, 0.125], [1.0, 0.5, -0.375]],
            [[0.25, 0.75, -1.5], [-3.0, -0.25, 0.0]],
        ]
    )
    torch.testing.assert_close(ties_merge(changes, density), torch.tensor(expected))


@pytest.mark.parametrize(
    ("scale", "margins", "expected"),
    [
        (1.0, Margins(5.0, 20.0, 10.0), 27.909571),
        (1.0, Margins(2.0, 6.0, 3.0), 6.90957),
        (1.0, Margins(0.1, 0.5, 0.2), 0.232994),
        (8.0, Margins(5.0, 20.0, 10.0), 17.267305),
        (8.0, Margins(2.0, 6.0, 3.0), 0.481078),
        (8.0, Margins(0.1, 0.5, 0.2), 2.310173),
    ],
)
def test_the_margin_loss_equals_that_of_wises_code(scale, margins, expected):
    """zjunlp/EasyEdit at 14cea82: WISE._cal_activation_loss on two contexts and an unrelated text, with SiLU."""
    outputs = torch.tensor([[[0.5, -1.0], [2.0, 0.25]], [[-0.75, 1.5], [0.0, -2.0]], [[1.0, 1.0], [0.5, 0.5]]])
    changes = torch.tensor([[[1.0, 0.5], [-0.5, 2.0]], [[0.25, -1.5], [1.0, 1.0]], [[0.5, 0.0], [0.0, -0.25]]])
    gaps = activation_gap(torch.nn.functional.silu, outputs, scale * changes).mean(-1)
    assert float(margin_loss(gaps[:2], gaps[2], margins)) == pytest.approx(expected, abs=2e-6)
