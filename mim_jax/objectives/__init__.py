"""The methods, one file each: a new one is a file, a line in OBJECTIVES, a config and a test."""

from mim_jax.objectives.beitv2 import BEiTv2
from mim_jax.objectives.byol import BYOL
from mim_jax.objectives.classification import Classification
from mim_jax.objectives.conmim import ConMIM
from mim_jax.objectives.croco import CroCo
from mim_jax.objectives.dmtjepa import DMTJEPA
from mim_jax.objectives.dtm import DTM
from mim_jax.objectives.hpm import HPM
from mim_jax.objectives.ijepa import IJEPA
from mim_jax.objectives.latentmim import LatentMIM
from mim_jax.objectives.lut import LUT
from mim_jax.objectives.mae import MAE
from mim_jax.objectives.maskalign import MaskAlign
from mim_jax.objectives.mfm import MFM
from mim_jax.objectives.salt import SALT
from mim_jax.objectives.segmentation import Segmentation
from mim_jax.objectives.simmim import SimMIM
from mim_jax.objectives.vqkd import VQKD

OBJECTIVES = {
    'beitv2': BEiTv2,
    'byol': BYOL,
    'classification': Classification,
    'conmim': ConMIM,
    'croco': CroCo,
    'dmtjepa': DMTJEPA,
    'dtm': DTM,
    'hpm': HPM,
    'ijepa': IJEPA,
    'latentmim': LatentMIM,
    'lut': LUT,
    'mae': MAE,
    'maskalign': MaskAlign,
    'mfm': MFM,
    'salt': SALT,
    'segmentation': Segmentation,
    'simmim': SimMIM,
    'vqkd': VQKD,
}
