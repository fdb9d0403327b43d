"""A run whose pictures are made, but not rendered: most of the time of a small fit is their text."""

from typing import TYPE_CHECKING

from overnight import RecordingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class UndrawnRun(RecordingRun):
    """For further runs of a step whose pictures another test renders."""

    def picture(self, name: str, figure: "Figure") -> None:
        assert figure.axes, name
        self.publish(self.folder / f"{name}.png", name.rpartition("/")[0])
