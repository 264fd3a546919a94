"""PyTorch's zip archives, looked through before anything in them is believed."""

import zipfile
from pathlib import Path

from mim_jax.errors import UserError

ZIP = b'PK\x03\x04'  # how a file of `torch.save` begins since PyTorch 1.6
CHUNK = 2**20
CODE = 2**26  # bytes of text, which TorchScript compresses; tensors are stored as they are


def check(path):
    """Compares every record of the archive `path` with its CRC-32, as the archive states it; a file
    of another kind, such as PyTorch's older one, has no checksums.

    Raises UserError for an archive that is damaged.
    """
    with open(path, 'rb') as file:
        if file.read(len(ZIP)) != ZIP:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(record.file_size for record in archive.infolist())
            if size > Path(path).stat().st_size + CODE:
                raise zipfile.BadZipFile('its records are far larger than the file')
            for record in archive.infolist():
                if record.CRC:  # PyTorch leaves them out where it is told to
                    with archive.open(record) as file:
                        while file.read(CHUNK):
                            pass
    except Exception as error:  # a damaged archive makes many kinds
        raise UserError(f'{path} cannot be read: it is damaged ({error})') from error
