"""The one error type users meet: what was found, what was expected, what to do."""

LONGEST_SHOWN = 60


class RopeWorksError(ValueError):
    """Bad input to a node or to the Python API. The model it was meant for is unchanged."""


RopeWorksError.__module__ = "ropeworks"  # the pack, not where ComfyUI's loader found it: error reports show it


def shown(value: object) -> str:
    """A value as errors and log lines quote it: one short line of printable ASCII, whatever a workflow put in."""
    if isinstance(value, (list, tuple, dict)):
        return f"a {'object' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, (str, bytes)):
        value = value[: LONGEST_SHOWN + 1]
    elif isinstance(value, int) and value.bit_length() > 4 * LONGEST_SHOWN:
        return f"a whole number of {value.bit_length()} bits"
    elif not isinstance(value, (int, float, type(None))):
        return f"a {type(value).__name__}"
    text = ascii(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."
