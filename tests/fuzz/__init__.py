"""Bad input of every sort: each case ends well or in one sentence.

`python -m tests.fuzz --cases=10000` runs the long form; `test_fuzz.py` a short one.
"""

from tests.fuzz.commands import commands, runs
from tests.fuzz.images import folders, images
from tests.fuzz.records import records
from tests.fuzz.weights import foreign, own, pytorch

SUBJECTS = {
    'commands': commands,
    'runs': runs,
    'weights': own,
    'imports': foreign,
    'pytorch': pytorch,
    'images': images,
    'folders': folders,
    'records': records,
}
# Of 500 cases so many are of each, by what a case costs.
SHARES = {
    'commands': 60,
    'runs': 20,
    'weights': 120,
    'imports': 40,
    'pytorch': 40,
    'images': 110,
    'folders': 60,
    'records': 50,
}
