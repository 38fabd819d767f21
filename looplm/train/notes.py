"""What is worth a thought while a run goes on: a line on the console and in the run's events, once a run."""

from rich.console import Console

from looplm.metrics.events import NOTE, Events


class Notes:
    """Remembers over restarts, by the events, what was told."""

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
