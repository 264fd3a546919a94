"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One clear sentence: what is wrong, where, and how to mend it.

    `main` prints the sentence without a stack trace and exits with status 2. It is one line that
    any terminal can print, whatever the names in it hold.
    """

    def __init__(self, sentence: str):
        super().__init__(''.join(c if c.isprintable() else repr(c)[1:-1] for c in str(sentence)))
