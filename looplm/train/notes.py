"""What is worth a thought: before a run spends time, and, once a run, while it goes on."""

from collections.abc import Iterator

from rich.console import Console

from looplm.config.schema import Run
from looplm.data.mixture import Mixture
from looplm.metrics.events import NOTE, Events
from looplm.train.workdir import Workdir


class Notes:
    """A line on the console and in the run's events. Remembers over restarts, by the events, what was told."""

    def __init__(self, events: Events, console: Console):
        self.events, self.console = events, console
        self.told = {event.get("about") for event in events.read(NOTE)}

    def tell(self, about: str, step: int, text: str) -> None:
        """Says a text, unless there was one about the same."""
        if about in self.told:
            return
        self.told.add(about)
        self.events.note(NOTE, about=about, step=step, text=text)
        self.console.print(f"note: step {step}: {text}", highlight=False, markup=False, soft_wrap=True)


def notes_before(run: Run, mixture: Mixture, workdir: Workdir, last_saved: int | None, newest: int) -> Iterator[str]:
    """What is worth a thought before time is spent. last_saved: by the run's events; newest: of the checkpoints that
    are there."""
    if last_saved is not None and not workdir.has(last_saved):
        yield (
            f"checkpoint {last_saved}, the last that was saved, is not in {workdir.checkpoints} any "
            f"more; the run goes on from step {newest}"
        )
    for name, before, now in workdir.moved(run):
        yield f"the data of {name} is read from {now} now; until here the run read it from {before}"
    wanted, known = run.model.vocab_size, mixture.vocab_size
    if wanted - known > known // 10:
        yield (
            f"model.vocab_size={wanted} is {wanted - known} above the {known} tokens of the data; "
            "every one costs time and memory"
        )
    if len(templates := mixture.templates) > 1:
        first, *others = (", ".join(names) for names in templates.values())
        yield (
            f"`looplm generate --chat` will ask with the template of {first}; that of {' and '.join(others)} is another"
        )
    for part in mixture.parts:
        if part.windows.padding > 0.001:
            yield f"{part.windows.padding:.1%} of the positions of {part.name} are padding"
