"""A console of Rich on which every text is shown as `visible` gives it."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sdcore.system.printable import visible


class PlainConsole(Console):
    """Rich's console; texts cannot control the terminal, styles and progress bars still do."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render anything that can be printed: all of Rich's own printing comes through here."""
        for segment in super().render(renderable, options):
            own = segment.control is not None  # Rich's commands, such as to move the cursor
            yield segment if own else segment._replace(text=visible(segment.text))
