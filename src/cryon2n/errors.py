"""The one exception that means "the input is at fault, and here is what to do"."""


class InputError(Exception):
    """Bad input: a file, a value or a combination that the user can put right.

    The message is one sentence (or two) that names the file, what was found, what was
    wanted and what to do.  The command line prints it without a traceback and exits with 2.
    """
