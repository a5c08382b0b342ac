"""Pictures of a run: figures without pyplot whose text is drawn as it is, and failures that do not end the run."""

import contextlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deberta_jax.atomic_files import replace_file
from deberta_jax.errors import is_expected, one_line
from deberta_jax.terminal import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_NAME = 24  # characters

# `$`, `\`, `_` and `^` in the names of classes and models are not markup, whatever the user's matplotlibrc says.
_PLAIN_TEXT: dict[Any, bool] = {"text.parse_math": False, "text.usetex": False, "axes.formatter.use_mathtext": False}


@contextlib.contextmanager
def open_figure(path: Path, *, size: tuple[float, float]) -> Iterator["Figure"]:
    """Yields an empty figure and then saves it, in the format of the file's ending. `size` is in inches.

    pyplot, whose global state and choice of a window system have no place in a training process, is not used.
    """
    with _empty_figure(size) as figure:
        yield figure
        with replace_file(path) as partial:
            figure.savefig(partial, dpi=120, format=path.suffix.removeprefix(".").lower())


def svg_picture(draw: Callable[["Figure"], None], *, size: tuple[float, float], title: str) -> str:
    """Returns a picture as an SVG element for an HTML page, whose fonts its text has.

    The same drawing gives the same element.

    Args:
      draw: draws on an empty figure.
      size: width and height in inches.
      title: describes the picture to a reader that does not see it. It keeps apart the elements of a page, which
        name parts of themselves.
    """
    # The page's font cannot be measured here; DejaVu Sans, which is, is a wide one, so that texts do not overlap.
    options: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": ["DejaVu Sans"]}
    buffer = io.StringIO()
    with _empty_figure(size, options) as figure:
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    _, _, element = buffer.getvalue().partition("<svg ")
    element = re.sub(r' id="[^"]*_\d+"', "", element)  # of groups, such as axes_1, which every picture has
    label = html.escape(printable(title), quote=True)
    return f'<svg role="img" aria-label="{label}" {element.strip()}'


@contextlib.contextmanager
def _empty_figure(size: tuple[float, float], options: dict[Any, Any] | None = None) -> Iterator["Figure"]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**_PLAIN_TEXT, **(options or {})}), warnings.catch_warnings():
        # A character without a glyph in the installed fonts is drawn as a box, which is no news to a training run.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def draw_or_report(path: Path, draw: Callable[[Path], None], *, log: Callable[[str], None]) -> None:
    """Calls `draw` with the path, and logs in one line what was saved or why the picture could not be drawn.

    Nothing is logged if `draw` writes no file.
    """
    try:
        path.unlink(missing_ok=True)  # of an earlier run; results and picture must belong together
        draw(path)
    except Exception as error:  # of any kind: a picture is not worth the run that it shows
        reason = one_line(error) if is_expected(error) else f"{type(error).__name__}: {one_line(error)}"
        log(f"could not draw {path}: {reason}")
        return
    if path.exists():
        log(f"saved {path}")


def picture_name(name: str) -> str:
    """Returns a name as a short line of text: control characters escaped and the middle of a long name left out."""
    half = (_LONGEST_NAME - 1) // 2
    if len(name) > _LONGEST_NAME:  # before the escapes, which take time for a name that is a whole document
        name = f"{name[: _LONGEST_NAME - 1 - half]}…{name[-half:]}"
    plain = printable(name)
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[: _LONGEST_NAME - 1 - half]}…{plain[-half:]}"
