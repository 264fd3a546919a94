"""How tokens are grouped; "layer by layer" merges inside the teacher, as Token Merging does.

    python -m mim_jax.sweep --table=configs/ablations/grouping.py

runs it on the embedded scenes; other bases as in main.py.
"""

BASE = 'configs/quickstart.py'

ROWS = {
    'bipartite': {'objective.morphing.grouping.name': 'bipartite'},
    'bipartite, first token free': {'objective.morphing.grouping.protect_first': 'false'},
    'K-means': {'objective.morphing.grouping.name': 'kmeans'},
    'K-medoids': {'objective.morphing.grouping.name': 'kmedoids'},
    'superpixels': {'objective.morphing.grouping.name': 'superpixels'},
    'layer by layer': {'objective.morphing.grouping.name': 'layerwise'},
    'random': {'objective.morphing.grouping.name': 'random'},
    'none': {'objective.morphing.schedule': 'none'},
}
