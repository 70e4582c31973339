"""Which model families the layer map serves, on tiny random instances.

python -m benchmarks.layer_map_coverage
"""

from __future__ import annotations

import torch

from benchmarks.environment import write_result
from lightning_edit.errors import LayerMapError
from lightning_edit.models import LayerMap
from lightning_edit.models.trunk import Trunk
from tests.tiny_models import FAMILIES, REFUSED, build, language_model


def main() -> None:
    rows = []
    for family, (_, name, fan_in, orientation) in FAMILIES.items():
        model = language_model(family)
        site = model.layer_map.site(1)
        batch = model.encoder.collate([model.encoder.encode("The capital of France is", "Rome")])
        trunk = Trunk(model, 1)
        with torch.no_grad():
            trunk.answer_logits(batch)
        right = (site.name, site.fan_in, site.orientation.value) == (name, fan_in, orientation)
        rows.append(
            {"family": family, "site": site.name, "orientation": orientation, "right": right, "trunk": trunk.works}
        )
        print(f"{family:10} {site.name:40} {orientation:7} right={right} trunk={trunk.works}")
    for family, config in REFUSED.items():
        try:
            LayerMap(build(config())).site(1)
            refused = False
        except LayerMapError as error:
            refused = True
            print(f"{family:10} refused: {error}")
        rows.append({"family": family, "refused": refused})
    write_result(__file__, {"families": rows})


if __name__ == "__main__":
    main()
