"""The methods, one file each: a new one is a file, a line in OBJECTIVES, a config and a test."""

from mim_jax.objectives.classification import Classification
from mim_jax.objectives.dtm import DTM
from mim_jax.objectives.mae import MAE
from mim_jax.objectives.simmim import SimMIM

OBJECTIVES = {
    'classification': Classification,
    'dtm': DTM,
    'mae': MAE,
    'simmim': SimMIM,
}
