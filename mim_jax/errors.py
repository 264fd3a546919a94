"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """One clear sentence: what is wrong, where, and how to mend it.

    `main` prints the sentence without a stack trace and exits with status 2.
    """
