"""The methods, one file each: a new one is a file, a line in OBJECTIVES, a config and a test."""

from mim_jax.objectives.beitv2 import BEiTv2
from mim_jax.objectives.beyondmasking import BeyondMasking
from mim_jax.objectives.byol import BYOL
from mim_jax.objectives.cae import CAE
from mim_jax.objectives.caev2 import CAEv2
from mim_jax.objectives.classification import Classification
from mim_jax.objectives.colormae import ColorMAE
from mim_jax.objectives.conmim import ConMIM
from mim_jax.objectives.croco import CroCo
from mim_jax.objectives.data2vec import Data2Vec
from mim_jax.objectives.de3 import De3
from mim_jax.objectives.dmjd import DMJD
from mim_jax.objectives.dmtjepa import DMTJEPA
from mim_jax.objectives.dtm import DTM
from mim_jax.objectives.hpm import HPM
from mim_jax.objectives.ijepa import IJEPA
from mim_jax.objectives.latentmim import LatentMIM
from mim_jax.objectives.lut import LUT
from mim_jax.objectives.mae import MAE
from mim_jax.objectives.maskalign import MaskAlign
from mim_jax.objectives.mfm import MFM
from mim_jax.objectives.moca import MOCA
from mim_jax.objectives.nim import NIM
from mim_jax.objectives.salt import SALT
from mim_jax.objectives.segmentation import Segmentation
from mim_jax.objectives.simmim import SimMIM
from mim_jax.objectives.vqkd import VQKD

OBJECTIVES = {
    'beitv2': BEiTv2,
    'beyondmasking': BeyondMasking,
    'byol': BYOL,
    'cae': CAE,
    'caev2': CAEv2,
    'classification': Classification,
    'colormae': ColorMAE,
    'conmim': ConMIM,
    'croco': CroCo,
    'data2vec': Data2Vec,
    'de3': De3,
    'dmjd': DMJD,
    'dmtjepa': DMTJEPA,
    'dtm': DTM,
    'hpm': HPM,
    'ijepa': IJEPA,
    'latentmim': LatentMIM,
    'lut': LUT,
    'mae': MAE,
    'maskalign': MaskAlign,
    'mfm': MFM,
    'moca': MOCA,
    'nim': NIM,
    'salt': SALT,
    'segmentation': Segmentation,
    'simmim': SimMIM,
    'vqkd': VQKD,
}
