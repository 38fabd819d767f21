"""Python looks for garbage again and again while a million objects are made that live as long as the process: a third
of a start. So a run is set up without, and what it has then is not looked through any more.
"""

import gc


def pause() -> None:
    gc.disable()


def resume() -> None:
    """Of what is there now nothing is garbage."""
    gc.freeze()
    gc.enable()


def restore() -> None:
    """As Python has it."""
    gc.unfreeze()
    gc.enable()
